"""Studies of funcnet itself: where its rules, its methods and its verifier stand, without peers."""
