"""Megatron core's reader of the per-module file, and the fields that its Transformer Engine layers accept."""

import ast

import loading

core = loading.source_of("megatron") / "core"


def module(path, **names):
    """A module of megatron.core by itself: the package imports Transformer Engine and CUDA."""
    text = path.read_text().replace("from megatron.core.utils import log_single_rank", "")
    space = {"__name__": path.stem, "log_single_rank": lambda *_: None, **names}
    exec(compile(text, str(path), "exec"), space)
    return space


reader = module(core / "quantization" / "quant_config.py")
layers = ast.parse((core / "extensions" / "transformer_engine.py").read_text())
(fields,) = [node for node in layers.body if isinstance(node, ast.ClassDef) and node.name == "TEQuantizationRecipe"]
FIELDS = {node.target.id for node in fields.body if isinstance(node, ast.AnnAssign)}
EXPECTED = {None: None, "tensorwise": "tensorwise", "rowwise": "blockwise", "rowwise_gw_hp": "blockwise"}

for case in loading.cases():
    recipe = reader["RecipeConfig"].from_yaml_file(str(case.folder / "precision.yaml"))
    for path, site in case.plan.sites.items():
        found = recipe.match(reader["MatchContext"](f"decoder.{path}", 0))
        if not any(other.format.is_fp8 for other in case.plan.sites.values()):
            assert found is None
            continue
        training = found.config["training_recipe"]
        assert training.keys() <= FIELDS
        assert training.get("fp8_quantization_recipe") == EXPECTED[site.scaling]
