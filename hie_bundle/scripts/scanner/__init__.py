"""From the scanner to the maps and back: DICOM, ADC, registration to an atlas, Z maps, DICOM segmentations."""
