"""nnU-Net's own trainer for as many steps as there is time for; found by ``nnUNet_extTrainer``."""

import os

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerSteps(nnUNetTrainer):
    """Epochs and steps an epoch from the environment, so that its learning rate has fallen when the time is over."""

    def __init__(self, plans, configuration, fold, dataset_json, device):  # nnU-Net reads these names
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ["PEER_EPOCHS"])
        self.num_iterations_per_epoch = int(os.environ["PEER_STEPS"])
        self.num_val_iterations_per_epoch = 1
        self.save_every = 1

    def perform_actual_validation(self, save_probabilities=False):
        """Of the cases that it was trained on: takes long and says nothing."""
