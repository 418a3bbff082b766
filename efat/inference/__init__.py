"""Networks that classify images on the chips of a lot."""
