"""Pictures of what networks see and say."""
