"""Reports of a run for people: dataset card, contact sheet, gallery, metrics, preview."""
