"""The renderer's programs in GLSL 3.30 and, what works on whole pictures, in compute programs of 4.30.

Geometry passes write four textures: albedo and material; normal (or a strand's direction) and roughness; place and depth
of subsurface scattering; and extra values. A lighting pass, a blur of what light scatters below the skin, and a tone
map follow, all at twice the picture's side; a last pass halves it.
"""

# ruff: noqa: E501 (GLSL reads better in long lines)

MATERIALS = {"skin": 1, "eye": 2, "teeth": 3, "tongue": 4, "jacket": 5, "hair": 6, "lashes": 7, "frame": 8, "shirt": 9}
"""Numbers of the branches in the programs below."""

MESH_VERTEX = """#version 330
uniform mat4 view; uniform mat4 model;
in vec3 position; in vec3 normal; in vec3 neutral; in vec4 tone; in vec4 mask;
out vec3 P, N, T; out vec4 X, M;
void main() {
  vec4 world = model * vec4(position, 1);
  P = world.xyz; N = mat3(model) * normal; T = neutral; X = tone; M = mask;
  gl_Position = view * world;
}"""

HAIR_VERTEX = """#version 330
uniform mat4 view; uniform mat4 model; uniform vec3 eye; uniform int parallel;
in vec3 position; in vec3 along; in vec4 tone; in vec2 side;
out vec3 P, N; out vec4 X;
void main() {
  vec3 at = (model * vec4(position, 1)).xyz, t = mat3(model) * along;
  vec3 v = parallel == 1 ? eye : normalize(eye - at);
  P = at + normalize(cross(t, v)) * side.x * side.y;
  N = t; X = tone;
  gl_Position = view * vec4(P, 1);
}"""

_NOISE = """
float hash3(vec3 p) { p = fract(p * .3183099 + .1); p *= 17.; return fract(p.x * p.y * p.z * (p.x + p.y + p.z)); }
float noise(vec3 x) {
  vec3 i = floor(x), f = fract(x); f = f * f * (3. - 2. * f);
  return mix(mix(mix(hash3(i), hash3(i + vec3(1, 0, 0)), f.x), mix(hash3(i + vec3(0, 1, 0)), hash3(i + vec3(1, 1, 0)), f.x), f.y),
             mix(mix(hash3(i + vec3(0, 0, 1)), hash3(i + vec3(1, 0, 1)), f.x), mix(hash3(i + vec3(0, 1, 1)), hash3(i + vec3(1, 1, 1)), f.x), f.y), f.z);
}
float layers(vec3 p) { return .5 * noise(p) + .25 * noise(p * 2.03) + .125 * noise(p * 4.1) + .0625 * noise(p * 8.3); }
float spot(vec3 p, vec3 c, float r) { vec3 d = (p - c) / r; return exp(-dot(d, d)); }
"""

MESH_FRAGMENT = (
    """#version 330
in vec3 P, N, T; in vec4 X, M;
layout(location = 0) out vec4 o0; layout(location = 1) out vec4 o1; layout(location = 2) out vec4 o2; layout(location = 3) out vec4 o3;
uniform int material; uniform mat4 model;
uniform vec3 c0, c1, c2, c3; uniform vec4 q0, q1, q2;
"""
    + _NOISE
    + """
void skin(inout vec3 al, inout vec3 n, inout float rough, inout float sss, inout float spec, inout float ao) {
  // c0 skin, c1 lips, c2 hair's under-colour, c3 brows; q0 beard, blush, freckles, makeup; q1 brow width, stubble, moustache, goatee
  float lip = smoothstep(.25, .75, M.x), x = abs(T.x);
  vec3 S = vec3(x, T.yz);
  float flush = spot(S, vec3(.047, -.125, .690), .024) * .9 + spot(S, vec3(0, -.168, .694), .016) * .55
              + spot(S, vec3(0, -.145, .628), .02) * .25 + smoothstep(.36, .42, x) * .25;
  float fine = layers(T * 90.) - .47, coarse = layers(T * 28.) - .47;
  al = c0 * (1. + .08 * coarse + .05 * fine);
  float speck = smoothstep(.62, .72, noise(T * 520.)) * spot(S * vec3(1, .6, 1), vec3(.026, -.09, .695), .036);
  al = mix(al, al * vec3(.72, .56, .48), clamp(speck * q0.z, 0., .8));
  al = mix(al, al * vec3(1.06, .70, .62), clamp(flush * q0.y, 0., 1.) * .55);
  float orbit = spot(S * vec3(1, 1, 1.5), vec3(.031, -.138, .722 * 1.5), .017);
  al *= mix(vec3(1), vec3(.93, .84, .84), orbit * .5);
  al = mix(al, al * vec3(.80, .62, .62), q0.w * smoothstep(.2, .8, M.y) * .6);
  // beard: jaw and cheeks, moustache, chin
  float front = smoothstep(-.035, -.065, T.y) * smoothstep(.590, .606, T.z);
  float jaw = front * smoothstep(.700 + .25 * (T.y + .05), .672, T.z) * smoothstep(.672, .655, T.z + max(0., .035 - x) * .25 - max(0., x - .04) * .9);
  float ragged = .006 * (noise(T * vec3(260., 260., 140.)) - .5);
  float lipline = smoothstep(.033, .023, x + ragged) * smoothstep(.6895, .6835, T.z + .30 * max(x - .005, 0.) + ragged) * smoothstep(.668, .674, T.z + ragged) * smoothstep(-.12, -.135, T.y);
  float chin = front * smoothstep(.026, .014, x + ragged) * smoothstep(.661, .652, T.z + ragged) * smoothstep(.612, .628, T.z) * smoothstep(-.09, -.115, T.y);
  float grain = .6 + .4 * noise(T * vec3(1500., 1500., 700.));
  float stubble = q1.y * max(jaw, lipline) * (1. - lip);
  al = mix(al, al * vec3(.52, .49, .50), stubble * grain * .9);
  float full = max(q0.x * max(jaw, lipline), max(q1.z * lipline, q1.w * max(chin, lipline))) * (1. - lip);
  full = smoothstep(.10, .85, full + .30 * (noise(T * vec3(700., 700., 260.)) - .5) * step(.03, full));
  al = mix(al, mix(al * .35, c2, .65) * (.8 + .8 * noise(T * vec3(1300., 900., 350.))), full * .88);
  al = mix(al, al * c1, lip);
  // brows: hairs painted along the bone
  float t = (x - .0115) / .0415;
  float z0 = .7470 + .0060 * sin(clamp(t / .62, 0., 1.) * 1.5708) - .0209 * pow(clamp(t - .62, 0., 1.), 1.3);
  float half_width = .0040 * q1.x * (1. - .70 * clamp((t - .25) / .75, 0., 1.)) * clamp(.55 + t * 2.5, 0., 1.);
  float lean = mix(1.4, .25, smoothstep(.0, .5, t));
  float streak = noise(vec3((x - (T.z - z0) * lean) * 1500., T.z * 160., 3.));
  float brow = smoothstep(1.1, .45, abs(T.z - z0) / half_width) * smoothstep(-.07, .10, t) * smoothstep(1.04, .90, t) * step(T.y, -.05);
  brow = smoothstep(.18, .62, brow * (.55 + .75 * streak));
  al = mix(al, c3, brow * .92);
  al = mix(al, c2 * 1.15, X.x * .95);
  rough = mix(.47, .30, lip) + .10 * fine + .2 * max(full, brow); sss = (1. - .25 * lip) * (1. - .8 * max(full, brow)); spec = mix(.62 + .25 * clamp(c0.g * 2.5, 0., 1.), 1.25, lip) * (1. - .6 * full);
  float nail = smoothstep(.3, .7, M.z); al = mix(al, al * vec3(1.10, .93, .92) + .02, nail); rough = mix(rough, .22, nail);
  float e = .0006;
  vec3 g = vec3(noise((T + vec3(e, 0, 0)) * 420.), noise((T + vec3(0, e, 0)) * 420.), noise((T + vec3(0, 0, e)) * 420.)) - noise(T * 420.);
  n = normalize(n - (g - n * dot(g, n)) * .08);
  al = mix(al, vec3(.020, .012, .010), X.w * .85); spec *= 1. - X.w * .8;
  ao = X.y;
  if (M.w > .5) { al = mix(al, vec3(.30, .055, .05), .9); rough = .35; sss = .3; }
}
void eyeball(inout vec3 al, inout vec3 n, inout float rough, inout float sss, inout float spec) {
  // T is the direction in the eye's own space, looking along -y; c1 iris, c2 its ring; q0 iris radius, pupil, seed
  vec3 d = normalize(T); float r = length(d.xz), ir = q0.x, a = atan(d.z, d.x);
  float rays = noise(vec3(cos(a) * 7., sin(a) * 7., q0.z)) * .6 + noise(vec3(cos(a) * 16., sin(a) * 16., q0.z + 3.)) * .4;
  vec3 iris = mix(c1 * .75, c1 * 1.15, rays); iris = mix(iris, c2, smoothstep(.62, .30, r / ir) * .45);
  iris *= mix(1., .30, smoothstep(.78, 1.0, r / ir)); iris *= mix(.80, 1.30, smoothstep(.3, -.6, d.z / ir));
  iris = mix(iris, vec3(.004), smoothstep(q0.y * ir * 1.10, q0.y * ir * .90, r));
  vec3 white = mix(vec3(.88, .86, .85), vec3(.82, .66, .62), smoothstep(.60, 1., r) * .5);
  float within = step(d.y, 0.) * smoothstep(ir * 1.05, ir * .95, r);
  al = mix(white, iris, within) * mix(.50, 1., smoothstep(.52, .05, d.z)); rough = .10; spec = 1.6; sss = .35 * (1. - within);
  n = normalize(mat3(model) * normalize(mix(d, vec3(0, -1, 0), .35 * within)));
}
// the distances of clothes.py, here for each fragment
float shirt_distance() {
  float x = abs(T.x), lower = q0.z * max(.052 - x, 0.) + q0.y * max(1. - x * x / .0036, 0.);
  float plane = q1.x + q1.y * max(T.y + .02, 0.) - lower * smoothstep(0., -.04, T.y);
  return min(max(plane - T.z, length(vec2(x, T.y + .012)) - q1.z), max(max(q1.w - T.z, T.y + .035), x - .066));
}
float jacket_distance() {
  float x = abs(T.x), h = clamp((T.z - .345) / .22, 0., 1.4);
  float front = max(max(x - (.008 + .070 * pow(h, 1.1)), (T.y + .045) * 1.5), .345 - T.z);
  float collar = max(.592 - T.z + .25 * (T.y - .03), length(vec2(x, T.y + .012)) - .070);
  return min(min(front, collar), max(max(.575 - T.z, T.y + .035), x - .066));
}
void cloth(float edge, inout vec3 al, inout vec3 n, inout float rough, inout float spec) {
  // X: distance inside at the vertices, inside the cuff, along the front's edge, from the wrist
  float weave = noise(T * vec3(900., 900., 330.)) - .5;
  al = c0 * (1. + .06 * weave); rough = .82; spec = .55;
  if (material == 9) {
    float stripe = q0.x * smoothstep(.45, .55, abs(fract(T.z * 38.) - .5) * 2.) * step(T.z, .62) * step(abs(T.x), .30);
    al = mix(al, al * .35 + .45 * (1. - al), stripe * .8);
    float hem = smoothstep(.0125, .0115, edge) * smoothstep(0., .002, edge); al *= 1. - .10 * hem;
    al *= 1. - .35 * smoothstep(.0014, .0, abs(edge - .0125));
  } else {
    float x = abs(T.x), z = T.z, zb = .345; bool fr = T.y < -.03 && z > zb && z < .585;
    vec2 d0 = normalize(vec2(.112, .128)); float sa = (x - .010) * d0.y - (z - zb) * d0.x;
    float g1 = .476 - .06 * (x - .055), g2 = .476 + .42 * (x - .055);
    float u = min(max(sa, z - g1), max(x - .097 - .10 * (z - .50), (g2 - z) * .92));
    al *= mix(1., 1.13, fr ? smoothstep(.0007, -.0007, u) : 0.);
    float dark = fr ? smoothstep(.010, .0, u) * step(0., u) * .45 : 0.;
    dark = max(dark, fr && x < .078 ? smoothstep(.0014, .0002, abs(z - mix(g1, g2, .5))) * .5 : 0.);
    al *= 1. - dark; al *= 1. - .25 * smoothstep(.0035, .0028, edge) * step(.0028, edge);
    if (T.y < -.03 && z < zb) al *= 1. - .5 * smoothstep(.004, .0, T.x - .008) * step(.008, T.x);
    al *= 1. - .4 * smoothstep(.0012, .0, abs(X.w - .020));
  }
  float e = .004; vec3 q = T * vec3(17., 17., 11.);
  vec3 g = vec3(layers(q + vec3(e * 17., 0, 0)), layers(q + vec3(0, e * 17., 0)), layers(q + vec3(0, 0, e * 11.))) - layers(q);
  n = normalize(n - (g - n * dot(g, n)) * q0.w * 4.);
}
void main() {
  vec3 n = normalize(N), al = c0; float rough = .5, sss = 0., ao = X.y, spec = 1., edge = 0.; int id = material;
  if (material == 1) skin(al, n, rough, sss, spec, ao);
  else if (material == 2) { eyeball(al, n, rough, sss, spec); ao = .95; }
  else if (material == 3) {
    float gap = smoothstep(.5, .44, abs(fract(atan(T.x, -(T.y + .095)) * 9.5) - .5));
    al = mix(c0 * mix(.86, 1., gap), vec3(.62, .22, .21), smoothstep(0., 1., X.z)); rough = .22; sss = .5; spec = 1.1;
  } else if (material == 4) { al = c0 * (.9 + .25 * layers(T * 300.)); rough = .30; sss = .4; }
  else if (material == 5 || material == 9) {
    edge = min(material == 9 ? shirt_distance() : jacket_distance(), X.y);
    if (edge < 0.) discard;
    cloth(edge, al, n, rough, spec); ao = 1.; id = 5;
  } else if (material == 7) {
    float f = clamp((-.1338 - T.y) / .0088, 0., 1.); bool low = T.z < .7279;
    float s = abs(fract(abs(T.x) * 900. + f * 1.2 * sign(abs(T.x) - .031)) - .5) * 2.;
    if (low ? f > .22 : f > .25 && (s > 1.15 - f * .9 || f > .90)) discard;
    al = low ? mix(c0, vec3(.25, .12, .09), .6) : c0; rough = .7; spec = .1; ao = .9;
  } else if (material == 8) { rough = q0.x; spec = 1.2; ao = 1.; id = 5; }
  if (!gl_FrontFacing && (material == 5 || material == 9)) { n = -n; ao *= .85; }
  o0 = vec4(al, float(id)); o1 = vec4(n, rough); o2 = vec4(P, sss); o3 = vec4(0, 0, spec, ao);
}"""
)

HAIR_FRAGMENT = """#version 330
in vec3 P, N; in vec4 X;
layout(location = 0) out vec4 o0; layout(location = 1) out vec4 o1; layout(location = 2) out vec4 o2; layout(location = 3) out vec4 o3;
uniform vec3 c0, c1, centre; uniform float shine;
void main() {
  vec3 al = mix(c0, c1, clamp(X.z * .55 + X.w * .45, 0., 1.)) * mix(.78, 1.12, X.x);
  vec3 out_ = normalize(P - centre);
  o0 = vec4(al, 6.); o1 = vec4(normalize(N), shine); o2 = vec4(P, X.z);
  o3 = vec4(out_.x, out_.z, 0., mix(.35, 1., X.y) * mix(.62, 1., smoothstep(0., .12, X.x)));
}"""

SHADOW_FRAGMENT = """#version 330
in vec3 P, N, T; in vec4 X, M; uniform int material;
void main() { if ((material == 5 || material == 9) && X.x < 0.) discard; }"""

HAIR_SHADOW_FRAGMENT = """#version 330
in vec3 P, N; in vec4 X;
void main() {}"""

_COMPUTE_HEAD = """#version 430
layout(local_size_x = 8, local_size_y = 8) in;
vec2 uv, pixel;
"""

_COMPUTE_MAIN = """
void main() {
  ivec2 at = ivec2(gl_GlobalInvocationID.xy), size = imageSize(out0);
  if (any(greaterThanEqual(at, size))) return;
  pixel = vec2(at) + .5; uv = pixel / vec2(size);
  shade();
  STORE
}"""


def _compute(outputs: tuple[tuple[str, str], ...], body: str) -> str:
    """A compute program over the pixels of its outputs, (format, name) each; ``body`` defines ``void shade()``.

    Accelerators for computing have few units that run fragment shaders: these passes are several times as fast so.
    """
    images = "".join(
        f"layout({kind}, binding = {index}) writeonly uniform image2D out{index}; vec4 {name};\n"
        for index, (kind, name) in enumerate(outputs)
    )
    store = " ".join(f"imageStore(out{index}, at, {name});" for index, (_, name) in enumerate(outputs))
    return _COMPUTE_HEAD + images + body + _COMPUTE_MAIN.replace("STORE", store)


LIGHT = _compute(
    (("rgba16f", "diffuse"), ("rgba16f", "gloss")),
    """
uniform sampler2D g0, g1, g2, g3, shadow_map; uniform mat4 light_view; uniform vec3 eye, to_key, to_fill, to_rim, to_rim2, to_box;
uniform vec3 key, fill, rim, rim2, sky, ground; uniform float scale;
float random(vec2 c) { return fract(52.9829189 * fract(dot(c, vec2(.06711056, .00583715)))); }
const vec2 DISC[16] = vec2[](vec2(-.94, -.40), vec2(.95, -.77), vec2(-.09, -.93), vec2(.34, .29), vec2(-.91, .45), vec2(-.81, -.88),
  vec2(-.38, .28), vec2(.97, .44), vec2(.44, -.97), vec2(.54, -.47), vec2(-.26, -.42), vec2(.79, .19), vec2(-.24, .99), vec2(-.81, .91),
  vec2(.20, .78), vec2(.14, -.14));
float shadow(vec3 p, vec3 n, float spread) {
  vec3 q = (light_view * vec4(p + n * .003, 1)).xyz * .5 + .5; float a = random(pixel) * 6.283, s = 0.;
  mat2 R = mat2(cos(a), -sin(a), sin(a), cos(a));
  for (int i = 0; i < 16; i++) s += texture(shadow_map, q.xy + R * DISC[i] * spread).r > q.z - .0016 - spread * .12 ? 1. : 0.;
  return s / 16.;
}
float shine(vec3 n, vec3 v, vec3 l, float r) {
  vec3 h = normalize(v + l); float nl = max(dot(n, l), 0.), nv = max(dot(n, v), .05), nh = max(dot(n, h), 0.), vh = max(dot(v, h), 0.);
  float k = (r + 1.) * (r + 1.) / 8., g = 1. / ((nl * (1. - k) + k) * (nv * (1. - k) + k) * 4.), f = .04 + .96 * pow(1. - vh, 5.);
  float a = r * r, d = nh * nh * (a * a - 1.) + 1.;
  return a * a / (3.14159 * d * d) * g * f * nl;
}
vec3 softbox(vec3 r, vec3 l, vec3 c, float size, float blur) {
  vec3 u = normalize(cross(l, vec3(0, 0, 1))), w = cross(u, l); float z = dot(r, l), s = .02 + blur * .6;
  vec2 q = vec2(dot(r, u), dot(r, w)) / max(z, .01);
  return z > 0. ? c * smoothstep(size + s, size - s, abs(q.x)) * smoothstep(size * 1.2 + s, size * 1.2 - s, abs(q.y)) : vec3(0);
}
vec3 wrapped(float nl, vec3 w) { vec3 a = clamp((nl + w) / (1. + w), 0., 1.); return a * a; }
void shade() {
  vec4 a = texture(g0, uv), b = texture(g1, uv), c = texture(g2, uv), e = texture(g3, uv); int id = int(a.w + .5);
  diffuse = vec4(0); gloss = vec4(0);
  if (id == 0) return;
  vec3 p = c.xyz, n = b.xyz, v = normalize(eye - p);
  vec3 nn = id == 6 ? vec3(e.x, -sqrt(max(0., 1. - e.x * e.x - e.y * e.y)), e.y) : n;
  float turn = random(pixel.yx + 7.) * 6.283, open = 0.; mat2 R = mat2(cos(turn), -sin(turn), sin(turn), cos(turn));
  for (int k = 0; k < 2; k++) {
    float reach = k == 0 ? .012 : .05;
    for (int i = 0; i < 12; i++) {
      vec2 o = uv + R * DISC[i] * reach * scale; vec3 d = texture(g2, o).xyz - p; float len = length(d) + 1e-5;
      open += max(0., dot(nn, d) / len - .12) * smoothstep(reach * 2.6, reach * .6, len) * step(.5, texture(g0, o).w) * (k == 0 ? .8 : 1.1);
    }
  }
  float ao = clamp(1. - open / 24. * 1.75, 0., 1.); ao = ao * ao * .35 + ao * .65;
  float sh = shadow(p, nn, .006) * .65 + shadow(p, nn, .0022) * .35, dim = ao * e.w;
  if (id == 6) {
    vec3 t = normalize(b.xyz), total = vec3(0), spec = vec3(0); float shift = (c.w - .5) * .14;
    vec3 ls[4] = vec3[](to_key, to_fill, to_rim, to_rim2), cs[4] = vec3[](key * mix(.12, 1., sh), fill, rim, rim2);
    for (int i = 0; i < 4; i++) {
      vec3 l = ls[i], h = normalize(l + v); float tl = dot(t, l), geo = smoothstep(-.35, .75, dot(nn, l));
      total += cs[i] * sqrt(max(0., 1. - tl * tl)) * geo * .62;
      float th1 = dot(normalize(t + nn * (-.06 + shift)), h), th2 = dot(normalize(t + nn * (.12 + shift * 1.5)), h);
      spec += cs[i] * geo * (pow(max(0., 1. - th1 * th1), 45.) * vec3(.14) + pow(max(0., 1. - th2 * th2), 14.) * a.rgb * .75);
    }
    diffuse = vec4(total * mix(.35, 1., dim) + mix(ground, sky, nn.z * .5 + .5) * .8 * dim, 0.);
    gloss = vec4(spec * mix(.25, 1., dim) * e.w * b.w, 1);
    return;
  }
  bool skin = id == 1; vec3 w = skin ? vec3(.26, .18, .15) : id == 2 ? vec3(.25) : vec3(.12);
  vec3 shade = skin ? vec3(pow(sh, .86), sh, pow(sh, 1.05)) : vec3(sh);
  vec3 d = wrapped(dot(n, to_key), w) * key * shade + wrapped(dot(n, to_fill), w) * fill * mix(.5, 1., ao)
         + max(dot(n, to_rim), 0.) * rim * ao * .8 + max(dot(n, to_rim2), 0.) * rim2 * ao * .8;
  vec3 around = mix(ground, sky, n.z * .5 + .5), dims = skin ? vec3(pow(dim, .85), dim, pow(dim, 1.04)) : vec3(dim);
  d = d * mix(vec3(.55), vec3(1.), dims) * mix(1., e.w, .75) + around * dims;
  float rough = clamp(b.w, .06, 1.), fr = .04 + .96 * pow(1. - max(dot(n, v), 0.), 5.) * (1. - rough * .75); vec3 r = reflect(-v, n), s = vec3(0);
  if (id == 2) {
    s += softbox(r, to_box, vec3(1), .17, .03) * 1.5 + softbox(r, to_fill, vec3(1), .13, .1) * .10 + mix(ground, sky, smoothstep(-.3, .9, r.z)) * .06;
    s *= mix(.35, 1., sh) * dim;
  } else {
    s += shine(n, v, to_key, rough) * key * sh + shine(n, v, to_fill, rough) * fill * .7 + shine(n, v, to_rim, rough) * rim + shine(n, v, to_rim2, rough) * rim2;
    if (skin) s = s * .55 + .45 * shine(n, v, to_key, rough * .62) * key * sh * .55;
    s += fr * mix(ground, sky, smoothstep(-.6, .9, r.z)) * .55 * dim; s *= mix(.3, 1., e.w) * e.z * mix(.5, 1., ao);
    if (id == 5) d += around * pow(1. - max(dot(n, v), 0.), 3.) * .35 * dim;
  }
  diffuse = vec4(d, c.w); gloss = vec4(s, 1);
}""",
)

SCATTER = _compute(
    (("rgba16f", "o"),),
    """
uniform sampler2D source, g2; uniform vec2 direction; uniform float scale;
void shade() {
  vec4 c = texture(source, uv), p = texture(g2, uv);
  if (c.a < .01) { o = c; return; }
  vec3 total = vec3(0), weight = vec3(0), reach = vec3(.0042, .0024, .0017) * c.a; const int K = 7;
  for (int i = -K; i <= K; i++) {
    float t = float(i) / float(K); vec2 u = uv + direction * sign(t) * t * t * .013 * scale;
    vec4 s = texture(source, u); float far = length(texture(g2, u).xyz - p.xyz);
    vec3 w = exp(-far * far / (2. * reach * reach + 1e-9)) * step(.01, s.a) * (abs(t) * 2. + .12); total += s.rgb * w; weight += w;
  }
  o = vec4(total / max(weight, 1e-6), c.a);
}""",
)

TONE = _compute(
    (("rgba8", "o"),),
    """
uniform sampler2D g0, diffuse, gloss, background; uniform float exposure, saturation;
void shade() {
  vec4 a = texture(g0, uv);
  if (a.w < .5) { o = vec4(texture(background, vec2(uv.x, 1. - uv.y)).rgb, 1); return; }
  vec3 x = (a.rgb * texture(diffuse, uv).rgb + texture(gloss, uv).rgb) * exposure;
  vec3 c = clamp(x * (2.51 * x + .03) / (x * (2.43 * x + .59) + .14), 0., 1.); float grey = dot(c, vec3(.2126, .7152, .0722));
  c = clamp(mix(vec3(grey), c, saturation), 0., 1.);
  o = vec4(mix(12.92 * c, 1.055 * pow(max(c, vec3(1e-5)), vec3(1. / 2.4)) - .055, step(.0031308, c)), 1);
}""",
)

HALVE = _compute(
    (("rgba8", "o"),),
    """
uniform sampler2D source;
void shade() { o = texture(source, vec2(uv.x, 1. - uv.y)); }""",
)
