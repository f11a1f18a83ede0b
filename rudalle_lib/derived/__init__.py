"""What the report makes of finished shards besides pages: larger data files, and thumbnails."""
