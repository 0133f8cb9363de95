"""Schedule and memory of the scan, as reported by the TPU compiler."""
