"""semfm: a masked autoencoder with experts, pretrained on micrographs, adapted to restore them."""
