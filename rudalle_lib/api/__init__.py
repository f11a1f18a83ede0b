"""For scripts, notebooks and the page to try prompts: images of one text, in memory."""
