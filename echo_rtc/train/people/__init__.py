"""Rendered people in motion: the pictures that the embedded model learns from.

From the bottom up: ``asset`` (the parametric human mesh, reduced to an upper body), ``surface`` (subdivision and
normals), ``person`` (what one human is made of), ``hair``, ``clothes``, ``skeleton`` (bones, arms, hands), ``face``
(sounds to facial actions), ``motion`` (what a person does over time), ``light`` (lights and backgrounds), ``shaders``
and ``renderer`` (OpenGL), ``figure`` (one person ready to be drawn) and ``shoot`` (takes and pictures, the commands).
"""
