"""From weights to a mask: inferers, voxelwise network, OpenVINO, promptable models, the Python API."""
