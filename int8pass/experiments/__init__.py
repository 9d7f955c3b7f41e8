"""Accuracy experiments: Table 1 of the paper in miniature, the outlier atlas, and the sweep over schemes."""
