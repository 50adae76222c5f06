"""What the mistake is: by its arrays, its inputs, the paths of the forward pass, and edits of its program."""
