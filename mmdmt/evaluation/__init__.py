"""Pictures of inputs and predictions, and how good pseudo-labels are."""
