"""The Open Images metric written down slowly and obviously: loops over classes, images and boxes.

Written from the rules at the head of openimages_metric.py, sharing no code with it. It answers with per-class
AP and ground-truth counts.
"""

import math


def iou(a, b):
    inter = intersection(a, b)
    union = area(a) + area(b) - inter
    return inter / union


def area(box):
    return (box[3] - box[1]) * (box[2] - box[0])


def intersection(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(height, 0.0) * max(width, 0.0)


def match_pair(detections, singles, groups, threshold, weight):
    """(score, box, weight) of what counts; `detections` are (score, box) in order."""
    entries = []
    taken = set()
    best_of_group = {}
    for score, box in detections:
        overlaps = [iou(box, single) for single in singles]
        if overlaps and max(overlaps) >= threshold:
            choice = overlaps.index(max(overlaps))
            if choice not in taken:
                taken.add(choice)
                entries.append((score, box, 1.0))
                continue
        overlaps = [intersection(box, group) / area(box) for group in groups]
        if overlaps and max(overlaps) >= threshold:
            choice = overlaps.index(max(overlaps))
            if choice not in best_of_group or score > best_of_group[choice][0]:
                best_of_group[choice] = (score, box)
            continue
        entries.append((score, box, 0.0))
    for score, box in best_of_group.values():
        if score > 0 and weight > 0:
            entries.append((score, box, weight))
    return entries


def average_precision(weights, num_gt):
    if num_gt == 0:
        return math.nan
    found, wrong, precisions = 0.0, 0, []
    for weight in weights:
        found += weight
        wrong += weight == 0
        precisions.append(found / (found + wrong))
    return sum(weight / num_gt * max(precisions[i:]) for i, weight in enumerate(weights))


def evaluate(truth, labels, detections, num_classes, threshold, weight, use_labels, verified_filter, cap):
    """Lists of ap and num_gt.

    truth: (image, cls, box, group_of); labels: (image, cls); detections: (image, cls, score, box).
    """
    if not use_labels:
        labels = []
    annotated = {row[0] for row in truth} | {row[0] for row in labels}
    aps, num_gts = [], []
    for cls in range(num_classes):
        entries = []
        num_gt = sum(weight if row[3] else 1.0 for row in truth if row[1] == cls)
        for image in sorted(annotated):
            here = [row for row in truth if row[0] == image and row[1] == cls]
            if verified_filter and not here and (image, cls) not in labels:
                continue
            found = [
                (score, tuple(box))
                for i, c, score, box in detections
                if i == image and c == cls and box[0] < box[2] and box[1] < box[3]
            ]
            found.sort(key=lambda one: (-one[0], one[1]))
            singles = [row[2] for row in here if not row[3]]
            groups = [row[2] for row in here if row[3]]
            for score, box, w in match_pair(found[:cap], singles, groups, threshold, weight):
                entries.append((-score, image, box, w))
        entries.sort(key=lambda entry: entry[:3])
        aps.append(average_precision([entry[3] for entry in entries], num_gt))
        num_gts.append(num_gt)
    return aps, num_gts
