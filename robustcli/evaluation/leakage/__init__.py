"""Whether extra training images hold test images: nearest neighbours, counted by a stated rule."""
