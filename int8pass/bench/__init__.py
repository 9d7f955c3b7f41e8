"""What examples and benchmarks run: a trained model with real outliers, and the peers it is compared with."""
