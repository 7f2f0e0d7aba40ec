"""Images: from bytes to RGB pixels, and to the square that an encoder takes."""
