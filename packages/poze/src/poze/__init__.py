"""3D-guided video: Pi3 features of a picture guide Wan2.2 TI2V-5B."""
