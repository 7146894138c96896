"""From the scanner to the maps and back: DICOM, ADC, atlases, Z maps against them, DICOM segmentations."""
