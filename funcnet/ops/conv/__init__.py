"""What slides over a grid: convolution, its transpose, pools."""
