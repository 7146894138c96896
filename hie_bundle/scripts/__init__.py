"""Python hooks of the bundle. The configs name what they use as ``scripts.<package>.<module>.<name>``.

==============  ====================================================================================================
``runtime``     a run without its images: errors, options, recipes, machine, processes, interruption
``geometry``    arrays in millimetres: brain, connected components, distances, surfaces, spacing, slices
``io``          files: volumes, weights, curves, pictures; read with checks, written whole or not at all
``data``        the dataset: cases, splits, folds, checks, download, loaders, run folders
``transforms``  loading two maps, resampling, derived channels, augmentation, masks on disk
``networks``    the study's U-Net; ``losses``: Hausdorff distance loss, its logarithm, compounds
``training``    handlers of MONAI's trainer: penalty, clipping, checkpoints, stopping, resuming, logs
``inference``   how a network sees a volume; evidence of ZADC; OpenVINO; segmentation from Python
``evaluation``  metrics, calibration, statistics, baselines
``report``      tables, pictures, plots and the page of one evaluation
``study``       several variants trained, evaluated and compared
``phantom``     the simulated cohort
``scanner``     ADC from diffusion images and DICOM, brain masks, atlases, Z maps, DICOM segmentations
``cli``         the command ``hie-bundle``
==============  ====================================================================================================

A package imports those above it in this table, not those below; ``phantom`` and ``scanner`` import ``runtime``,
``geometry``, ``io`` and ``data`` alone. ``tests/bundle/test_architecture.py`` holds this.

A file's affine is read in ``io.volumes``, for checks, scoring and networks. A MetaTensor carries it from there. The
native grid is left in the recipe's ``transforms#grid``; ``Invertd`` in ``evaluate.yaml`` and ``inference.yaml`` returns
to it.
"""

from .moved import install

install()
