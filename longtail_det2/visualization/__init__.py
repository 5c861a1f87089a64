"""Drawing of multi-label truth and predictions, and the HTML report."""
