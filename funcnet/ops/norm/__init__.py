"""What is measured over an axis and divided by it: the norms, softmax."""
