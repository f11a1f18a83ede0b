"""The Suprematist demo domain: scenes, captions, a classical checker and the trained weights."""
