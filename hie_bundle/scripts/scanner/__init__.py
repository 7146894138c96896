"""From the scanner to the maps: DICOM, diffusion images, ADC."""
