"""The architectures of image classifiers in transformers 5.

Their blocks are alike: norm, attention, norm, MLP. Neither layer scales nor relative positions concern the linears.
"""

from dataclasses import replace

from quept.models.architecture import Architecture
from quept.models.image_classification import IMAGE_CLASSIFICATION
from quept.models.sites import Site

_ATTENTION = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
_PLAIN = ("mlp.fc1", "mlp.fc2")
_GATED = ("mlp.gate_proj", "mlp.up_proj")

VIT = Architecture(
    model_type="vit",
    blocks="vit.layers",
    linears=(*_ATTENTION, "attention.o_proj", *_PLAIN),
    shared_inputs=(_ATTENTION,),
    sites=(
        Site("layernorm_before", _ATTENTION),
        Site("attention.v_proj", ("attention.o_proj",)),
        Site("layernorm_after", ("mlp.fc1",)),
    ),
    attention="attention",
    task=IMAGE_CLASSIFICATION,
    outer=("vit.embeddings.patch_embeddings.projection", "classifier"),
)
DEIT = replace(
    VIT,
    model_type="deit",
    blocks="deit.layers",
    outer=(
        "deit.embeddings.patch_embeddings.projection",
        "classifier",
        "cls_classifier",
        "distillation_classifier",
    ),
    optional=("classifier", "cls_classifier", "distillation_classifier"),
)
BEIT = replace(
    VIT,
    model_type="beit",
    blocks="beit.layers",
    outer=("beit.embeddings.patch_embeddings.projection", "classifier"),
)
DINOV2 = replace(
    VIT,
    model_type="dinov2",
    blocks="dinov2.encoder.layer",
    linears=(*_ATTENTION, "attention.o_proj", *_PLAIN, *_GATED, "mlp.down_proj"),
    shared_inputs=(_ATTENTION, _GATED),
    sites=(
        Site("norm1", _ATTENTION),
        Site("attention.v_proj", ("attention.o_proj",)),
        Site("norm2", ("mlp.fc1",)),
        Site("norm2", _GATED),
        Site("mlp.up_proj", ("mlp.down_proj",)),
    ),
    outer=("dinov2.embeddings.patch_embeddings.projection", "classifier"),
    optional=(*_PLAIN, *_GATED, "mlp.down_proj"),  # one kind of MLP or the other
)

# A block is a stage, as in the paper: the layers of the stage and the merging of patches behind them. Behind the first
# norm of a layer, windows that the patches do not fill are padded with zeros.
SWIN = Architecture(
    model_type="swin",
    blocks="swin.encoder.layers",
    linears=(*(f"blocks.*.{path}" for path in VIT.linears), "downsample.reduction"),
    shared_inputs=(tuple(f"blocks.*.{path}" for path in _ATTENTION),),
    sites=(
        *(
            Site(
                f"blocks.*.{site.producer}",
                tuple(f"blocks.*.{path}" for path in site.consumers),
                shifts=site.producer != "layernorm_before",
            )
            for site in VIT.sites
        ),
        Site("downsample.norm", ("downsample.reduction",)),
    ),
    attention="blocks.*.attention",
    task=IMAGE_CLASSIFICATION,
    outer=("swin.embeddings.patch_embeddings.projection", "classifier"),
    outputs=3,
    optional=("downsample.norm", "downsample.reduction"),  # no stage but the last: nothing is merged
)
