"""What each dashboard shows, a file each."""
