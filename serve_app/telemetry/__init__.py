"""What Parley says about itself."""
