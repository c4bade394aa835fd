"""Dimensions and roughness measured on images: lines, contacts, particles, spectra of edges."""
