"""Classification losses behind one contract (`ClassificationLoss`)."""
