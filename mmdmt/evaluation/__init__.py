"""Pictures of what networks see and say, and how good pseudo-labels are."""
