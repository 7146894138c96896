"""Python hooks of the bundle. The configs name what they use, as ``scripts.<module>.<name>``.

====================  ==============================================================================================
``bonbid``            the dataset: finding cases, splits, folds, checks, download; files, not tensors
``phantom``           how a cohort is simulated
``scanner``           ADC from diffusion images and DICOM, brain masks, atlases, Z maps, masks as DICOM segmentations
``preparation``       the dataset in other forms, written once: resampled, stacked, nnU-Net's
``transforms``        loading two maps (``loading``); TorchIO in MONAI (``bridge``); three of its own, faster (``fast``)
``networks``          the study's U-Net; the prior of others
``voxelwise``         a second network, on single voxels of the native grid; ``boosting``: a peer on the same features
``distance``          exact Euclidean distance fields
``losses``            Hausdorff distance loss, its logarithm, compounds
``handlers``          what training adds to MONAI's engine: L1 term, clipping, seeds, checkpoints, stopping, resuming
``logs``              one line an epoch, and the file of it
``tracking``          a run in Weights & Biases; parameters for MLflow
``recipe``            what weights were trained with, in words; where another recipe is refused
``provenance``        the folder of a run: one run's alone, with run.json
``environment``       what a run runs on: versions, revision, hardware
``curves``            TensorBoard's, without gaps and doubles
``interruption``      SIGINT and SIGTERM end a run in good order
``loaders``           processes that load: which case one died or hangs with
``masks``             masks on disk: a file for each case, on its grid, whole or not there
``finite``            numbers that are none: noticed in their step, never saved, loaded or made into a mask
``weights``           files with weights: written, read, checked
``segmenter``         segmentation from Python; ``images``: what users hand in, and results of the same kind
``command``           ``hie-bundle``: segmentation and the workflows by one word each
``mixins``            the recipes that come with the bundle, by name
``inferers``          how a network sees a volume: backend, window, mirrorings, checkpoints
``openvino_backend``  the same network run by OpenVINO
``prompted``          a promptable model in a network's place: MedSAM-2
``metrics``           figures from two masks, each with its registration
``surfaces``          the surfaces of two masks and how far apart they are; ``components``: lesions as wholes
``spacing``           the voxel size of a tensor
``measures``          the registrations: label, unit, direction, definition; what tables, plots and the study follow
``baselines``         a voxelwise regression, fitted on the training split, that a network has to beat
``calibration``       whether probabilities are what they say, and which threshold gives the best masks
``evaluation``        one row a case, and everything written at the end
``scoring``           the same for masks of any origin
``statistics``        means, intervals, tests, ranks
``report``            tables, pictures, plots and the page of one evaluation
``study``             several variants trained, evaluated and compared
``distributed``       several processes: start, shares, failures
``machine``, ``cores``  memory, workers, cores
``options``           values that nobody reads, or that are not allowed, are refused
``kinds``             what an option may be: numbers, lists of them, flags, texts, devices
``workflow``          MONAI's, whose refusals of files and options are one line
``errors``, ``files``   what a user can mend, in one line; files written whole
====================  ==============================================================================================

Geometry. A file's affine is read in ``bonbid.volumes`` (checks, scoring) and by MONAI's readers in
``transforms.loading`` (networks); a test holds them equal. From there a MetaTensor carries it. The native grid is left
in the recipe's ``transforms#grid`` and come back to by ``Invertd`` in ``evaluate.yaml`` and ``inference.yaml``, which
undoes what the image went through. Voxel sizes in mm come from ``spacing.spacing_of`` (tensors) and
``Volume.spacing_mm`` (files), both the header's own. Pictures are turned upright in ``report.pictures``. Whether two
files are on one grid is for ``bonbid.checks.grid_difference`` to say.
"""
