// Attention of narrow heads on Hopper. narrow_attention.py puts its numbers and the two products in front of this text.
//
// Each warpgroup has 64 queries and goes through all keys, a tile of KEYS at a time:
//
//   scores of this tile -> exponentials -> halves -> products with the next tile's keys and with this tile's values
//
// Warpgroups do not wait for each other, so that one has its products while others have their exponentials.
// Exponentials are taken of differences to a shift for each row, which was HEADROOM above the maximum when it was last
// set. It is set again only when an exponential has reached 2, so that there is no search for maxima in most tiles;
// halves hold what lies between. The scores stay in their registers until that is known.
//
// Keys and values come in a ring of STAGES through the hardware's tensor copies. Lines of 80 bytes are many small
// requests to the L2 cache, so the blocks of a cluster share them: each fetches a part of every tile for all.

constexpr int TILE_BYTES = KEYS * LINE;
constexpr int STAGE_BYTES = 2 * TILE_BYTES;
constexpr int PART = KEYS / CLUSTER;
constexpr float HEADROOM = 3.0f;
constexpr u32 TWO_OR_MORE = 0x40004000;  // the bit that two halves have if they are not below 2, or not numbers

struct alignas(64) TensorMap { char bytes[128]; };

__device__ __forceinline__ u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// ------------------------------------------------------------------------------------------------ barriers and copies

__device__ __forceinline__ void init_barrier(u32 barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ __forceinline__ void expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void arrive(u32 barrier, u32 block) {
    asm volatile(
        "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier), "r"(block) : "memory");
}

__device__ __forceinline__ void await(u32 barrier, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "AGAIN: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra DONE;\nbra AGAIN;\nDONE:\n}" ::"r"(barrier), "r"(parity) : "memory");
}

__device__ __forceinline__ void meet_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Copies PART lines of a tensor to the same place in all blocks of the cluster.
__device__ __forceinline__ void copy(u32 target, const TensorMap* map, u32 barrier, int line, int head, int image) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1, {%3, %4, %5, %6}], [%2], %7;"
        ::"r"(target), "l"((u64)map), "r"(barrier), "r"(0), "r"(line), "r"(head), "r"(image),
        "h"((unsigned short)((1 << CLUSTER) - 1)) : "memory");
}

// ------------------------------------------------------------------------------------------------------------ products

__device__ __forceinline__ void fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void finish() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }

// Keeps the compiler from moving what it does with these registers across this place.
template <int N> __device__ __forceinline__ void pin(float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(x[i])::"memory");
}

template <int N> __device__ __forceinline__ void pin(u32 (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+r"(x[i])::"memory");
}

// A matrix in shared memory, lines of 128 bytes, swizzled; its address in units of 16 bytes. The constant part of the
// upper word is the swizzle and 1024 bytes from eight lines to the next.
__device__ __forceinline__ u32 matrix(u32 address) { return (address >> 4) | 0x10000; }

__device__ __forceinline__ u64 descriptor(u32 matrix) {
    u64 y;
    asm("mov.b64 %0, {%1, %2};" : "=l"(y) : "r"(matrix), "n"(0x40000040));
    return y;
}

// -------------------------------------------------------------------------------------------------------- exponentials

__device__ __forceinline__ float exponential(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ u32 halves(float low, float high) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// The sum, or the maximum, over the four lanes that share a row.
__device__ __forceinline__ float sum_of_row(float x) {
    x += __shfl_xor_sync(0xFFFFFFFF, x, 1);
    return x + __shfl_xor_sync(0xFFFFFFFF, x, 2);
}

__device__ __forceinline__ float maximum_of_row(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFF, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xFFFFFFFF, x, 2));
}

// ---------------------------------------------------------------------------------------------------------- the kernel

// A lane has two rows of its warp's 16, lane / 4 and that plus 8; of each eight columns it has two, from 2 (lane % 4).
// In registers four numbers of eight columns stand together: two of the first row, two of the second.

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(WARPGROUPS * 128, 1)
narrow_attention(const __grid_constant__ TensorMap keys, const __grid_constant__ TensorMap values,
                 const unsigned short* __restrict__ q, unsigned short* __restrict__ out,
                 long long q_image, long long q_line, int rows, int count, float scale) {
    extern __shared__ unsigned char memory[];
    __shared__ u64 full_barriers[STAGES], empty_barriers[STAGES];
    const u32 base = (shared_address(memory) + 1023) & ~1023u;
    const u32 full = shared_address(full_barriers), empty = shared_address(empty_barriers);
    const int warpgroup = threadIdx.x >> 7, warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31;
    const int head = blockIdx.y, image = blockIdx.z, heads = gridDim.y;
    const int first = blockIdx.x * WARPGROUPS * ROWS;
    const int tiles = (count + KEYS - 1) / KEYS;
    u32 block;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(block));

    // Warpgroups without queries rest, but one of each block fetches its part of the tiles.
    auto working = [&](int first) { return max(1, min(WARPGROUPS, (rows - first + ROWS - 1) / ROWS)); };
    if (threadIdx.x == 0) {
        int all = 0;
        for (int i = 0; i < CLUSTER; i++) all += working(first + (i - (int)block) * WARPGROUPS * ROWS);
        for (int i = 0; i < STAGES; i++) {
            init_barrier(full + 8 * i, 1);
            init_barrier(empty + 8 * i, 4 * all);
        }
        asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async;" ::: "memory");
    }
    meet_cluster();

    if (warpgroup < working(first)) {
        auto load = [&](int tile) {
            const u32 target = base + tile % STAGES * STAGE_BYTES + block * PART * LINE, barrier = full + tile % STAGES * 8;
            const int line = tile * KEYS + block * PART;
            expect(barrier, STAGE_BYTES);
            copy(target, &keys, barrier, line, head, image);
            copy(target + TILE_BYTES, &values, barrier, line, head, image);
        };
        if (threadIdx.x == 0)
            for (int i = 0; i < STAGES && i < tiles; i++) load(i);
        __syncwarp();

        const int row = first + warpgroup * ROWS + warp * 16 + (lane >> 2);
        u32 queries[12];
#pragma unroll
        for (int i = 0; i < 12; i++) {
            const int line = row + (i & 1) * 8, column = (i >> 1) * 8 + (lane & 3) * 2;
            queries[i] = 0;
            if (i < WIDTH / 4 && line < rows)
                queries[i] = *(const u32*)(q + image * q_image + line * q_line + head * WIDTH + column);
        }

        float s[KEYS / 2], o[WIDTH / 2], sums[2] = {0.0f, 0.0f}, shifts[2] = {-1e30f, -1e30f};
        u32 p[KEYS / 4];
#pragma unroll
        for (int i = 0; i < WIDTH / 2; i++) o[i] = 0.0f;

        const u32 stages = matrix(base);
        auto scores = [&](int stage) {
#pragma unroll
            for (int i = 0; i < 3; i++)
                multiply_keys(s, queries[4 * i], queries[4 * i + 1], queries[4 * i + 2], queries[4 * i + 3],
                              descriptor(stages + stage * (STAGE_BYTES / 16) + 2 * i), i > 0);
        };
        await(full, 0);
        pin(s);
        pin(queries);
        fence();
        scores(0);
        commit();
        finish();
        pin(s);

        int stage = 0, parity = 0;
        for (int tile = 0; tile < tiles; tile++) {
            if (tile == tiles - 1 && tiles * KEYS > count) {
                const int left = count - tile * KEYS - (lane & 3) * 2;
#pragma unroll
                for (int i = 0; i < KEYS / 2; i++)
                    if ((i >> 2) * 8 + (i & 1) >= left) s[i] = -__int_as_float(0x7F800000);  // minus infinity
            }
            float parts[2];
#pragma unroll 1
            for (int attempt = 0;; attempt++) {
                u32 seen = 0;
                parts[0] = parts[1] = 0.0f;
#pragma unroll
                for (int i = 0; i < KEYS / 4; i++) {
                    const float low = exponential(__fmaf_rn(s[2 * i], scale, -shifts[i & 1]));
                    const float high = exponential(__fmaf_rn(s[2 * i + 1], scale, -shifts[i & 1]));
                    p[i] = halves(low, high);
                    seen |= p[i];
                    parts[i & 1] += low + high;
                }
                pin(parts);
                pin(p);
                if (attempt > 0 || !__any_sync(0xFFFFFFFF, seen & TWO_OR_MORE)) break;
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    float most = s[2 * r];
#pragma unroll
                    for (int i = r; i < KEYS / 4; i += 2) most = fmaxf(most, fmaxf(s[2 * i], s[2 * i + 1]));
                    const float shift = fmaxf(shifts[r], __fmaf_rn(maximum_of_row(most), scale, HEADROOM));
                    const float factor = exponential(shifts[r] - shift);
                    shifts[r] = shift;
                    sums[r] *= factor;
#pragma unroll
                    for (int i = r; i < WIDTH / 4; i += 2) {
                        o[2 * i] *= factor;
                        o[2 * i + 1] *= factor;
                    }
                }
            }
            sums[0] += parts[0];
            sums[1] += parts[1];

            // Behind the last tile its own scores are computed once more, for nothing.
            int next = stage + 1, next_parity = parity;
            if (next == STAGES) next = 0, next_parity ^= 1;
            if (tile + 1 == tiles) next = stage, next_parity = parity;
            await(full + 8 * next, next_parity);
            pin(s);
            pin(o);
            pin(p);
            fence();
            scores(next);
            const u32 v = stages + stage * (STAGE_BYTES / 16) + TILE_BYTES / 16;
#pragma unroll
            for (int i = 0; i < KEYS / 16; i++)
                multiply_values(o, p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3], descriptor(v + i * LINE), 1);
            commit();
            finish();
            pin(s);
            pin(o);
            if (lane < CLUSTER) arrive(empty + 8 * stage, lane);
            if (threadIdx.x == 0 && tile >= LAG && tile - LAG + STAGES < tiles) {
                const int done = tile - LAG;
                await(empty + 8 * (done % STAGES), (done / STAGES) & 1);
                load(done + STAGES);
            }
            __syncwarp();
            stage = next;
            parity = next_parity;
        }

#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float factor = 1.0f / sum_of_row(sums[r]);
            const int line = row + 8 * r;
            if (line < rows) {
                u32* place = (u32*)(out + (((long long)image * rows + line) * heads + head) * WIDTH + (lane & 3) * 2);
#pragma unroll
                for (int i = 0; i < WIDTH / 8; i++)
                    place[4 * i] = halves(o[4 * i + 2 * r] * factor, o[4 * i + 2 * r + 1] * factor);
            }
        }
    }
    meet_cluster();  // a block's memory must stay while others still send to it
}
