"""Plain mmseg configs and checkpoints of what was trained here."""
