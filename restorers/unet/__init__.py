"""A compact U-Net, the restorers that apply such a network to images of any size, and its supervised form."""
