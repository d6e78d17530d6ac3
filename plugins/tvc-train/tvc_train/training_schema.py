"""The section `training` as a JSON Schema. Light: imports nothing heavy."""

from __future__ import annotations

from typing import Any

from .data_schema import or_null

__all__ = ["METHODS", "PHASE", "TRAINING"]

_POSITIVE = {"type": "number", "exclusiveMinimum": 0, "maximum": 1e9}
_SHARE = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
_COUNT = {"type": "integer", "minimum": 1, "maximum": 1_000_000}
_NORMALIZATION = {"enum": ["fixed", "train", "reestimate"]}
_STAGE = {"oneOf": [{"type": "integer"}, {"type": "string", "minLength": 1}]}
_THAW = {"oneOf": [_STAGE, {"type": "array", "items": _STAGE, "minItems": 1}]}

PHASE: dict[str, Any] = {
    "type": "object",
    "properties": or_null(
        {
            "name": {"type": "string", "minLength": 1, "maxLength": 60},
            "epochs": {"type": "integer", "minimum": 1, "maximum": 100_000},
            "thaw": _THAW,
            "rate": {"oneOf": [_POSITIVE, {"const": "auto"}]},
            "layer_decay": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            "warmup": {"type": "number", "minimum": 0, "maximum": 100_000},
            "schedule": {"enum": ["cosine", "linear", "constant"]},
            "stop_early": _COUNT,
            "normalization": _NORMALIZATION,
            "size": {"type": "integer", "minimum": 8, "maximum": 8192},
        },
        "layer_decay",
        "stop_early",
        "normalization",
        "size",
    ),
    "required": ["epochs"],
    "additionalProperties": False,
    "x-tvc-other-names": {
        **dict.fromkeys(("lr", "learning_rate", "base_lr", "max_lr"), "rate"),
        **dict.fromkeys(("scheduler", "lr_scheduler"), "schedule"),
        **dict.fromkeys(("unfreeze", "unfreeze_stages", "trainable"), "thaw"),
        "freeze": "thaw, which says what is trained",
        **dict.fromkeys(("early_stopping", "patience"), "stop_early"),
        "warmup_epochs": "warmup",
        **dict.fromkeys(("layer_lr_decay", "llrd"), "layer_decay"),
        **dict.fromkeys(("image_size", "img_size"), "size"),
    },
}

METHODS: dict[str, Any] = {
    "type": "array",
    "items": {
        "oneOf": [
            {"type": "string", "minLength": 1, "x-tvc-kind": "method"},
            {
                "type": "object",
                "minProperties": 1,
                "maxProperties": 1,
                "propertyNames": {"x-tvc-kind": "method"},
                "additionalProperties": {"type": "object"},
            },
        ]
    },
}

TRAINING: dict[str, Any] = {
    "type": "object",
    "properties": or_null(
        {
            "seed": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
            "phases": {"type": "array", "items": PHASE, "minItems": 1, "maxItems": 100},
            "methods": METHODS,
            "batch_size": {"oneOf": [_COUNT, {"const": "auto"}]},
            "accumulate": _COUNT,
            "optimizer": {"enum": ["adamw", "sgd"]},
            "weight_decay": {"type": "number", "minimum": 0, "maximum": 1e6},
            "momentum": _SHARE,
            "label_smoothing": _SHARE,
            "clip": _POSITIVE,
            "ema": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            "normalization": _NORMALIZATION,
            "precision": {"enum": ["float32", "bfloat16", "float64"]},
            "compile": {"type": "boolean"},
            "layout": {"enum": ["auto", "contiguous", "channels_last"]},
            "workers": {"type": "integer", "minimum": 0, "maximum": 1024},
            "best": {"enum": ["accuracy", "balanced_accuracy", "f1", "average_precision", "loss"]},
            "keep": {"enum": ["best", "last"]},
            "save_every": _COUNT,
        },
        "clip",
        "ema",
        "normalization",
        "save_every",
    ),
    "additionalProperties": False,
    "x-tvc-other-names": {
        **dict.fromkeys(("amp", "mixed_precision", "fp16", "bf16"), "precision: bfloat16"),
        **dict.fromkeys(("gradient_clipping", "gradient_clip_val", "max_grad_norm"), "clip"),
        **dict.fromkeys(("grad_accum", "gradient_accumulation_steps"), "accumulate"),
        **dict.fromkeys(("device", "accelerator"), "the option --accelerator of tvc train"),
        **dict.fromkeys(("devices", "gpus"), "the option --devices of tvc train"),
        "monitor": "best",
        **{key: f"data.{key}" for key in ("augment", "balance", "cutmix", "mixup", "split")},
        **dict.fromkeys(("val_split", "validation_split"), "data.split"),
    },
}
