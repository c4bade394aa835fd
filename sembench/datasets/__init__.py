"""Image sets: their manifests, where their files are, and whether their splits are independent."""
