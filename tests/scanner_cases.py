"""DICOM series as scanners write them, made from arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

SECRET = "DOE^JANE"  # stands in every header, and may stand in no log


class Study:
    """One visit of one patient, its series written file by file into a folder."""

    def __init__(self, folder: Path, vendor: str = "SIEMENS", patient: str = SECRET) -> None:
        self.folder, self.vendor, self.patient = folder, vendor, patient
        self.study, self.frame = generate_uid(), generate_uid()
        folder.mkdir(parents=True, exist_ok=True)

    def series(
        self,
        number: int,
        volume: np.ndarray,
        affine: np.ndarray,
        image_type: Sequence[str] = ("ORIGINAL", "PRIMARY", "DIFFUSION", "NONE"),
        b_value: float | None = None,
        slope: float = 1.0,
        scale: float | None = None,
        uid: str | None = None,
        shuffle: bool = True,
        **elements: Any,
    ) -> list[Dataset]:
        """Write (X, Y, Z) values as stored values ``values / slope``; the affine is nibabel's (RAS+).

        Args:
            b_value: written as the vendor does.
            slope: rescale slope.
            scale: Philips' private scale slope.
            elements: further elements of every image.
        """
        lps = np.diag([-1.0, -1, 1, 1]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        row, column = lps[:3, 0] / spacing[0], lps[:3, 1] / spacing[1]
        uid = uid or generate_uid()
        order = np.random.default_rng(number).permutation(volume.shape[2]) if shuffle else range(volume.shape[2])
        datasets = []
        for file, k in enumerate(order):
            meta = FileMetaDataset()
            meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MRImageStorage, ExplicitVRLittleEndian
            one = Dataset()
            one.file_meta = meta
            one.SOPClassUID, one.SOPInstanceUID = MRImageStorage, generate_uid()
            meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
            one.PatientID = one.PatientName = self.patient
            one.PatientBirthDate, one.PatientSex = "20260101", "O"
            one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = self.study, uid, self.frame
            one.StudyID, one.StudyDate, one.StudyTime, one.AccessionNumber = "1", "20260104", "101010", "A1"
            one.ReferringPhysicianName, one.PositionReferenceIndicator = "", ""
            one.Modality, one.Manufacturer, one.SeriesNumber = "MR", self.vendor, number
            one.InstanceNumber, one.ImageType = int(k) + 1, list(image_type)
            one.SeriesDescription = f"{self.patient} diffusion"
            one.ImagePositionPatient = [float(f"{v:.6f}") for v in (lps @ [0, 0, k, 1])[:3]]
            one.ImageOrientationPatient = [float(f"{v:.8f}") for v in (*row, *column)]
            one.PixelSpacing = [float(f"{spacing[1]:.6f}"), float(f"{spacing[0]:.6f}")]
            one.SliceThickness = float(f"{spacing[2]:.6f}")
            one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
            one.Rows, one.Columns = volume.shape[1], volume.shape[0]
            one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
            one.RescaleSlope, one.RescaleIntercept = slope, 0.0
            one.PixelData = np.round(volume[:, :, k].T / slope).astype("<u2").tobytes()
            if b_value is not None:
                self._weight(one, b_value)
            if scale is not None:
                one.add_new((0x2005, 0x0010), "LO", "Philips MR Imaging DD 001")
                one.add_new((0x2005, 0x100E), "FL", scale)
            for name, value in elements.items():
                setattr(one, name, value)
            pydicom.dcmwrite(self.folder / f"{number:03d}_{file:03d}.dcm", one, enforce_file_format=True)
            datasets.append((int(k), one))
        return [one for _, one in sorted(datasets, key=lambda pair: pair[0])]

    def _weight(self, one: Dataset, b_value: float) -> None:
        if self.vendor == "SIEMENS":
            one.add_new((0x0019, 0x0010), "LO", "SIEMENS MR HEADER")
            one.add_new((0x0019, 0x100C), "IS", int(b_value))
        elif self.vendor.startswith("GE"):
            one.add_new((0x0043, 0x0010), "LO", "GEMS_PARM_01")
            one.add_new((0x0043, 0x1039), "IS", [int(1e9 + b_value) if b_value else 0, 8, 0, 0])
        elif self.vendor.startswith("Philips"):
            one.add_new((0x2001, 0x0010), "LO", "Philips Imaging DD 001")
            one.add_new((0x2001, 0x1003), "FL", b_value)
        else:
            one.DiffusionBValue = float(b_value)

    def enhanced(
        self,
        number: int,
        volumes: Sequence[np.ndarray],
        affine: np.ndarray,
        b_values: Sequence[float | None],
        directionality: Sequence[str] | None = None,
        slice_by_slice: bool = False,
        slopes: Sequence[float] | None = None,
        image_type: Sequence[str] = ("ORIGINAL", "PRIMARY", "DIFFUSION", "NONE"),
        uid: str | None = None,
        frames: Sequence[tuple[int, int]] | None = None,
        name: str = "",
    ) -> Path:
        """Write volumes (X, Y, Z) as one enhanced multi-frame image with the standard's functional groups.

        Args:
            directionality: of each volume, ``NONE``, ``DIRECTIONAL`` or ``ISOTROPIC``.
            slice_by_slice: order of the frames; else volume by volume.
            slopes: rescale slope of each volume.
            frames: (volume, slice) of each, instead of all.
            name: of the file.
        """
        lps = np.diag([-1.0, -1, 1, 1]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        (template,) = self.series(number, volumes[0][..., :1], affine, image_type, uid=uid)
        (self.folder / f"{number:03d}_000.dcm").unlink()
        uid, one, depth = uid or template.SeriesInstanceUID, template, volumes[0].shape[2]
        for keyword in (
            "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope",
            "RescaleIntercept",
        ):  # fmt: skip
            delattr(one, keyword)
        one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
        one.SeriesInstanceUID, one.ContentDate, one.ContentTime = uid, "20260104", "101010"
        order = [(v, k) for v in range(len(volumes)) for k in range(depth)]
        order = list(frames or sorted(order, key=lambda at: at[::-1] if slice_by_slice else at))
        slopes, kinds = slopes or [1.0] * len(volumes), directionality or ["DIRECTIONAL"] * len(volumes)
        one.NumberOfFrames, one.InstanceNumber = len(order), 1 + len(list(self.folder.iterdir()))
        one.PixelData = b"".join(np.round(volumes[v][:, :, k].T / slopes[v]).astype("<u2").tobytes() for v, k in order)
        axes = [float(f"{v:.8f}") for v in (*(lps[:3, 0] / spacing[0]), *(lps[:3, 1] / spacing[1]))]
        size = {
            "PixelSpacing": [float(f"{spacing[1]:.6f}"), float(f"{spacing[0]:.6f}")],
            "SliceThickness": float(f"{spacing[2]:.6f}"), "SpacingBetweenSlices": float(f"{spacing[2]:.6f}"),
        }  # fmt: skip
        one.DimensionOrganizationSequence = [_dataset(DimensionOrganizationUID=uid)]
        one.DimensionIndexSequence = [
            _dataset(DimensionOrganizationUID=uid, DimensionIndexPointer=pointer, FunctionalGroupPointer=group)
            for pointer, group in ((0x00209057, 0x00209111), (0x00189087, 0x00189117))
        ]
        one.SharedFunctionalGroupsSequence = [
            _dataset(
                PlaneOrientationSequence=[_dataset(ImageOrientationPatient=axes)],
                PixelMeasuresSequence=[_dataset(**size)], MREchoSequence=[_dataset(EffectiveEchoTime=80.0)],
            )
        ]  # fmt: skip
        groups = []
        for v, k in order:
            at = [float(f"{x:.6f}") for x in (lps @ [0, 0, k, 1])[:3]]
            content = {"StackID": "1", "InStackPositionNumber": k + 1, "DimensionIndexValues": [k + 1, v + 1]}
            group = _dataset(
                PlanePositionSequence=[_dataset(ImagePositionPatient=at)], FrameContentSequence=[_dataset(**content)],
                MRImageFrameTypeSequence=[_dataset(FrameType=list(image_type))],
                PixelValueTransformationSequence=[_dataset(RescaleSlope=slopes[v], RescaleIntercept=0.0)],
            )  # fmt: skip
            if (b := b_values[v]) is not None:
                weighting = _dataset(DiffusionBValue=float(b), DiffusionDirectionality=kinds[v] if b else "NONE")
                if b and kinds[v] == "DIRECTIONAL":
                    along = np.eye(3)[v % 3].tolist()
                    weighting.DiffusionGradientDirectionSequence = [_dataset(DiffusionGradientOrientation=along)]
                group.MRDiffusionSequence = [weighting]
            groups.append(group)
        one.PerFrameFunctionalGroupsSequence = groups
        path = self.folder / (name or f"enhanced_{number}_{one.InstanceNumber}.dcm")
        pydicom.dcmwrite(path, one, enforce_file_format=True)
        return path


def _dataset(**elements: Any) -> Dataset:
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made
