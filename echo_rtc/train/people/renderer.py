"""Pictures of figures with OpenGL through EGL: geometry, light, scatter below the skin, tone map, at twice the side.

A scene is uploaded once (:meth:`Renderer.load`); for each frame only places and normals of skinned vertices follow.
It knows nothing of people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import moderngl
import numpy as np
from numpy.typing import NDArray

from echo_rtc.errors import InputError
from echo_rtc.train.people import shaders
from echo_rtc.train.people.asset import F32, F64, I32
from echo_rtc.train.people.hair import Strands
from echo_rtc.train.people.light import U8, Camera, Look

Uniforms = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles (T, 3) of one material. A skinned mesh counts from the scene's skinned vertices; a rigid one has its
    own ``vertices`` (N, 6) of places and normals, ``template`` (N, 3), and moves by the matrix of its ``name``."""

    material: str
    triangles: I32
    uniforms: Uniforms
    shadow: bool = True
    name: str = ""
    vertices: F32 | None = None
    template: F32 | None = None


@dataclass(frozen=True, eq=False)
class Scene:
    """What stays for a take: meshes; ``attributes`` (V, 11) of skinned vertices (template 3, tone 4, mask 4); hair with
    its uniforms; light, lens, and a background (side, side, 3) uint8."""

    meshes: Sequence[Mesh]
    attributes: F32
    strands: Strands | None
    hair: Uniforms
    look: Look
    camera: Camera
    background: U8


@dataclass
class _Loaded:
    scene: Scene
    skinned: Any
    meshes: list[tuple[Mesh, Any, Any]] = field(default_factory=list)
    hair: tuple[Any, Any] | None = None
    owned: list[Any] = field(default_factory=list)


class Renderer:
    """One OpenGL context; use it in the thread that made it. Raises InputError where no context can be had."""

    def __init__(self, side: int = 384, device_index: int | None = None, shadow_side: int = 1024) -> None:
        where: dict[str, Any] = {"backend": "egl"}
        if device_index is not None:
            where["device_index"] = device_index
        try:
            self._gl = gl = moderngl.create_context(standalone=True, require=430, **where)
        except Exception as error:  # whatever the driver's loader says
            raise InputError(f"no OpenGL context through EGL ({error}); install libegl1 and a driver") from error
        self.side = side
        size = (2 * side, 2 * side)
        self._mesh = gl.program(shaders.MESH_VERTEX, shaders.MESH_FRAGMENT)
        self._hair = gl.program(shaders.HAIR_VERTEX, shaders.HAIR_FRAGMENT)
        self._mesh_shadow = gl.program(shaders.MESH_VERTEX, shaders.SHADOW_FRAGMENT)
        self._hair_shadow = gl.program(shaders.HAIR_VERTEX, shaders.HAIR_SHADOW_FRAGMENT)
        formats = ("f2", "f2", "f4", "f2")
        self._geometry = [gl.texture(size, 4, dtype=kind) for kind in formats]
        self._depth = gl.depth_renderbuffer(size)
        self._geometry_target = gl.framebuffer(self._geometry, self._depth)
        self._lit = [gl.texture(size, 4, dtype="f2") for _ in range(2)]
        self._blurred = [gl.texture(size, 4, dtype="f2") for _ in range(2)]
        self._toned = gl.texture(size, 4)
        self._picture = gl.texture((side, side), 4)
        self._picture_target = gl.framebuffer([self._picture])
        self._shadow = gl.depth_texture((shadow_side, shadow_side))
        self._shadow.compare_func = ""
        self._shadow_target = gl.framebuffer(depth_attachment=self._shadow)
        self._background = gl.texture((side, side), 3)
        for texture in (*self._geometry, *self._lit, *self._blurred, self._toned, self._shadow, self._background):
            texture.repeat_x = texture.repeat_y = False
        for texture in self._geometry:
            texture.filter = (moderngl.NEAREST, moderngl.NEAREST)
        sources = {"light": shaders.LIGHT, "scatter": shaders.SCATTER, "tone": shaders.TONE, "halve": shaders.HALVE}
        self._passes = {name: gl.compute_shader(source) for name, source in sources.items()}
        self._loaded: _Loaded | None = None

    @property
    def description(self) -> str:
        """The driver's name for what draws."""
        return str(self._gl.info["GL_RENDERER"])

    def close(self) -> None:
        """Frees the context."""
        self._unload()
        self._gl.release()

    def _unload(self) -> None:
        if self._loaded is not None:
            for thing in self._loaded.owned:
                thing.release()
        self._loaded = None

    def load(self, scene: Scene) -> None:
        """Uploads what stays for a take, in the place of what was there."""
        self._unload()
        gl = self._gl
        skinned = gl.buffer(reserve=max(1, len(scene.attributes)) * 24, dynamic=True)
        loaded = _Loaded(scene, skinned)
        own = loaded.owned.append
        own(skinned)
        fixed = gl.buffer(np.ascontiguousarray(scene.attributes, "f4").tobytes())
        own(fixed)
        for mesh in scene.meshes:
            indices = gl.buffer(np.ascontiguousarray(mesh.triangles, "i4").tobytes())
            own(indices)
            if mesh.vertices is None:
                layout = [(skinned, "3f 3f", "position", "normal"), (fixed, "3f 4f 4f", "neutral", "tone", "mask")]
            else:
                assert mesh.template is not None
                count = len(mesh.vertices)
                padded = np.concatenate([mesh.template, np.zeros((count, 8), np.float32)], 1)
                buffers = [gl.buffer(np.ascontiguousarray(data, "f4").tobytes()) for data in (mesh.vertices, padded)]
                loaded.owned += buffers
                layout = [
                    (buffers[0], "3f 3f", "position", "normal"),
                    (buffers[1], "3f 4f 4f", "neutral", "tone", "mask"),
                ]
            arrays = [
                gl.vertex_array(program, layout, indices, skip_errors=True)
                for program in (self._mesh, self._mesh_shadow)
            ]
            loaded.owned += arrays
            loaded.meshes.append((mesh, arrays[0], arrays[1]))
        if scene.strands is not None:
            strands = scene.strands
            data = np.concatenate([strands.at, strands.along, strands.tone, strands.side], 1)
            buffer, indices = gl.buffer(data.astype("f4").tobytes()), gl.buffer(strands.triangles.tobytes())
            layout = [(buffer, "3f 3f 4f 2f", "position", "along", "tone", "side")]
            drawn = gl.vertex_array(self._hair, layout, indices, skip_errors=True)
            cast = gl.vertex_array(self._hair_shadow, layout, indices, skip_errors=True)
            loaded.owned += [buffer, indices, drawn, cast]
            loaded.hair = (drawn, cast)
        self._background.write(np.ascontiguousarray(scene.background).tobytes())
        self._loaded = loaded

    def draw(self, vertices: F32, models: Mapping[str, F64], centre: F64) -> U8:
        """One frame: skinned ``vertices`` (V, 6) of places and normals, ``models`` (4, 4) of rigid meshes and of
        "hair", and the middle of the hair (3,). Returns (side, side, 3). Raises RuntimeError before :meth:`load`."""
        if self._loaded is None:
            raise RuntimeError("load a scene before drawing")
        loaded, scene, gl = self._loaded, self._loaded.scene, self._gl
        loaded.skinned.write(np.ascontiguousarray(vertices, "f4"))
        camera, look = scene.camera, scene.look
        view = camera.matrix()
        to_key = _unit(look.to_key)
        light_view = _parallel(0.46) @ _towards(camera.at + 1.5 * to_key, camera.at)
        gl.enable(moderngl.DEPTH_TEST)
        gl.disable(moderngl.CULL_FACE | moderngl.BLEND)

        self._shadow_target.use()
        self._shadow_target.clear(depth=1.0)
        _set(self._mesh_shadow, {"view": light_view})
        for mesh, _, cast in loaded.meshes:
            if mesh.shadow:
                _set(
                    self._mesh_shadow,
                    {"material": shaders.MATERIALS[mesh.material], "model": models.get(mesh.name, _STILL)},
                )
                cast.render()
        hair = {"model": models.get("hair", _STILL)}
        if loaded.hair is not None:
            _set(self._hair_shadow, hair | {"view": light_view, "eye": to_key, "parallel": 1})
            loaded.hair[1].render()

        self._geometry_target.use()
        self._geometry_target.clear(0, 0, 0, 0, depth=1.0)
        # Hair first, then clothes: what they hide of the skin is not shaded.
        if loaded.hair is not None:
            _set(self._hair, {**hair, **scene.hair, "view": view, "eye": camera.eye, "parallel": 0, "centre": centre})
            loaded.hair[0].render()
        _set(self._mesh, {"view": view})
        for mesh, drawn, _ in reversed(loaded.meshes):
            _set(self._mesh, {"material": shaders.MATERIALS[mesh.material], "model": models.get(mesh.name, _STILL)})
            _set(self._mesh, mesh.uniforms)
            drawn.render()
        gl.disable(moderngl.DEPTH_TEST)
        return self._finish(light_view)

    def _finish(self, light_view: F64) -> U8:
        assert self._loaded is not None
        look, camera = self._loaded.scene.look, self._loaded.scene.camera
        scale = 1 / camera.height
        for unit, texture in enumerate((*self._geometry, self._shadow)):
            texture.use(unit)
        units = {f"g{index}": index for index in range(4)}
        directions = {name: _unit(getattr(look, name)) for name in ("to_key", "to_fill", "to_rim", "to_rim2", "to_box")}
        colours = {name: getattr(look, name) for name in ("key", "fill", "rim", "rim2", "sky", "ground")}
        more = {"shadow_map": 4, "light_view": light_view, "eye": camera.eye, "scale": scale}
        self._pass("light", self._lit, units | directions | colours | more)
        source = self._lit[0]
        for direction, result in zip(((1, 0), (0, 1)), self._blurred, strict=True):
            source.use(5)
            self._pass("scatter", [result], {"source": 5, "g2": 2, "direction": direction, "scale": scale})
            source = result
        source.use(5)
        self._lit[1].use(6)
        self._background.use(7)
        tone = {"exposure": look.exposure, "saturation": look.saturation}
        self._pass("tone", [self._toned], {"g0": 0, "diffuse": 5, "gloss": 6, "background": 7, **tone})
        self._toned.use(5)
        self._pass("halve", [self._picture], {"source": 5})
        data = self._picture_target.read(components=3)
        return np.frombuffer(data, np.uint8).reshape(self.side, self.side, 3)

    def _pass(self, name: str, results: Sequence[Any], uniforms: Uniforms) -> None:
        """Runs a compute program over the pixels of its results."""
        program = self._passes[name]
        _set(program, uniforms)
        for unit, texture in enumerate(results):
            texture.bind_to_image(unit, read=False, write=True)
        width, height = results[0].size
        program.run(-(-width // 8), -(-height // 8))
        self._gl.memory_barrier()


_STILL = np.eye(4)


def _set(program: Any, uniforms: Uniforms) -> None:
    """Sets what the program has; the compiler drops what it does not need."""
    for name, value in uniforms.items():
        if name not in program:
            continue
        if isinstance(value, int | float):
            program[name].value = value
        else:
            array: NDArray[Any] = np.asarray(value, "f4")
            program[name].write(np.ascontiguousarray(array.T if array.ndim == 2 else array).tobytes())


def _unit(vector: F64) -> F64:
    return np.asarray(vector / np.linalg.norm(vector))


def _towards(eye: F64, at: F64) -> F64:
    forward = _unit(at - eye)
    right = _unit(np.cross(forward, [0, 0, 1.0]))
    view = np.eye(4)
    view[:3, :3] = np.stack([right, np.cross(right, forward), -forward])
    view[:3, 3] = -view[:3, :3] @ eye
    return view


def _parallel(reach: float, near: float = 0.1, far: float = 3.0) -> F64:
    return np.array(
        [
            [1 / reach, 0, 0, 0],
            [0, 1 / reach, 0, 0],
            [0, 0, -2 / (far - near), -(far + near) / (far - near)],
            [0, 0, 0, 1],
        ]
    )
