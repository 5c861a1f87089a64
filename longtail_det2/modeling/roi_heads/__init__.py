"""ROI heads that take a classification loss object."""
