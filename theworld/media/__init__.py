"""Images and videos in, images and videos out."""
