"""The pose of a camera from world points and where they are seen (PnP)."""

import cv2
import numpy as np

from utils.types import Array


def resect(points: Array, pixels: Array, K: Array, start: Array, inlier_px: float, least: int, least_share: float = 0.0) -> Array | None:
    """World-to-camera pose (4, 4) by RANSAC over PnP, refined on its inliers by Levenberg-Marquardt; the same bits every time.

    Args:
        points: (N, 3) world.
        pixels: (N, 2) where they are seen.
        K: (3, 3).
        start: (4, 4) world-to-camera pose that the search begins at.
        inlier_px: largest reprojection error of an inlier.
        least: fewest points, and fewest inliers.
        least_share: smallest share of the points that are inliers.

    Returns:
        None if too few points agree with any pose.
    """
    if len(points) < least:
        return None
    rotation, translation = cv2.Rodrigues(start[:3, :3])[0], start[:3, 3:].copy()
    cv2.setRNGSeed(0)
    solved, rotation, translation, inliers = cv2.solvePnPRansac(
        points, pixels, K, None, rotation, translation, useExtrinsicGuess=True, reprojectionError=inlier_px, flags=cv2.SOLVEPNP_ITERATIVE
    )
    if not solved or inliers is None or len(inliers) < max(least, least_share * len(points)):
        return None
    rows = inliers[:, 0]
    rotation, translation = cv2.solvePnPRefineLM(points[rows], pixels[rows], K, None, rotation, translation)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(rotation)[0], translation[:, 0]
    return pose
