"""From a grid to another: resizing, padding, adaptive pools, shuffled pixels, samples between the points."""
