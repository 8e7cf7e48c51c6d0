"""Transformer Engine's recipe classes, which are plain Python, build what the exported file names."""

import ast
import importlib.util
import sys

import loading

package = loading.source_of("transformer_engine")
spec = importlib.util.spec_from_file_location("te_recipe", package / "common" / "recipe" / "__init__.py")
recipe = sys.modules["te_recipe"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipe)
te_linear = ast.parse((package / "pytorch" / "module" / "linear.py").read_text())
(linear,) = [node for node in te_linear.body if isinstance(node, ast.ClassDef) and node.name == "Linear"]
(init,) = [node for node in linear.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
ARGUMENTS = {argument.arg for argument in (*init.args.args, *init.args.kwonlyargs)}
EXPECTED = {
    "tensorwise": "Float8CurrentScaling",
    "rowwise": "Float8BlockScaling",
    "rowwise_gw_hp": "Float8BlockScaling",
}

for case in loading.cases():
    tree = ast.parse((case.folder / "te.py").read_text())
    assigned = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    imported = [node for node in tree.body if isinstance(node, ast.ImportFrom) and "recipe" in node.module]
    names = {alias.name: getattr(recipe, alias.name) for node in imported for alias in node.names}
    recipes = eval(ast.unparse(assigned["RECIPES"]), names)
    planned = {path: site.scaling for path, site in case.plan.sites.items() if site.format.is_fp8}
    assert ast.literal_eval(assigned["FP8"]) == planned
    for scaling in planned.values():
        assert type(recipes[scaling]).__name__ == EXPECTED[scaling]
    (made,) = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Fp8Linear"]
    assert {str(item.arg) for item in made.keywords} <= ARGUMENTS
