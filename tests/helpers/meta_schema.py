"""What the model zoo's schema of metadata.json asks for, to check it offline.

Written by hand from the published ``meta_schema_20240725.json``, which metadata.json names
(https://project-monai.github.io/schema/meta_schema_20240725.json, read in its version of commit
abfc0515 of Project-MONAI/project-monai.github.io): it states no licence, so there is no copy here.
The same types and the same required entries; its descriptions are left out.
"""

TEXTS = (
    *("schema", "version", "monai_version", "pytorch_version", "numpy_version", "task"),
    *("description", "authors", "copyright", "data_source", "data_type", "image_classes"),
    *("label_classes", "pred_classes", "intended_use"),
)
OBJECTS = ("changelog", "required_packages_version", "eval_metrics", "supported_apps")
REQUIRED = (
    *("schema", "version", "monai_version", "pytorch_version", "numpy_version"),
    *("required_packages_version", "task", "description", "authors", "copyright"),
    "network_data_format",
)


def kind(name):
    return {"type": name}


def listed(*names):
    return {"type": "array", "items": kind(list(names) if len(names) > 1 else names[0])}


TENSOR = {
    "type": "object",
    "properties": {
        **{name: kind("string") for name in ("type", "format", "dtype")},
        "num_channels": kind("integer"),
        "spatial_shape": listed("string", "integer"),
        "value_range": listed("number"),
        "is_patch_data": kind("boolean"),
        "channel_def": kind("object"),
    },
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
}
ARGUMENT = {"anyOf": [*map(kind, ("number", "integer", "string", "boolean")), TENSOR]}
ARGUMENTS = {"type": "object", "patternProperties": {"^.+$": ARGUMENT}}
NETWORK = {
    "type": "object",
    "properties": dict.fromkeys(("inputs", "outputs", "post_processed_outputs"), ARGUMENTS),
    "required": ["inputs", "outputs"],
}
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2019-09/schema",
    "type": "object",
    "properties": {
        **{name: kind("string") for name in TEXTS},
        **{name: kind("object") for name in OBJECTS},
        "references": listed("string"),
    },
    "patternProperties": {"^[_a-zA-Z0-9]+_data_format$": NETWORK},
    "required": list(REQUIRED),
}
