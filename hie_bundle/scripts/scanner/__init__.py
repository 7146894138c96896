"""From the scanner to the maps and back: DICOM, diffusion images, ADC, DICOM segmentations."""
