// Products of float32 rows with matrices in their stored format: 4- and 8-bit packed, bfloat16, float16.
//
// A packed row holds q + 2^(bits - 1), unsigned, or codes: of a table of 16 values, or E4M3 in 8 bits. Byte j of a 4-bit
// row is elements 2j (low) and 2j + 1 (high). The inner loops are written once, over 8 lanes (GCC's and clang's vector
// types); only the 8-bit dot product, the transpose and decoding use intrinsics: AVX2, AVX-VNNI or AVX-512 VNNI, NEON dot
// products, or plain loops (MLLAMA_PORTABLE).
//
// Activations of the 8-bit kernels are integers in -127..127 with a scale for every 32. Weights are multiplied unsigned,
// and the contribution of the offset is subtracted at the end: sum (u - o) a = sum u a - o sum a.

#include <atomic>
#include <cfloat>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <unistd.h>

#if defined(MLLAMA_PORTABLE)
#elif defined(__AVX2__)
#include <immintrin.h>
#define X86 1
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#define ARM 1
#endif

typedef float f8 __attribute__((vector_size(32)));
typedef int32_t i8x __attribute__((vector_size(32)));
typedef uint32_t u8x __attribute__((vector_size(32)));
typedef uint8_t bytes32 __attribute__((vector_size(32)));
typedef uint8_t bytes8 __attribute__((vector_size(8)));
typedef uint16_t halves8 __attribute__((vector_size(16)));

template <class V> static inline V load(const void *from) {
    V value;
    memcpy(&value, from, sizeof value);
    return value;
}
static inline f8 all(float value) { return f8{} + value; }
static inline float sum(f8 v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

// ---- 16-bit floats ----

enum Kind { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

// Unsigned integers widened to 32 bits. (Compilers do the general form element by element.)
static inline u8x widen(bytes8 v) {
#if defined(X86)
    return (u8x)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)v));
#else
    return __builtin_convertvector(v, u8x);
#endif
}
static inline u8x widen(halves8 v) {
#if defined(X86)
    return (u8x)_mm256_cvtepu16_epi32((__m128i)v);
#else
    return __builtin_convertvector(v, u8x);
#endif
}

static inline f8 from_bfloat16(halves8 h) { return (f8)(widen(h) << 16); }

static inline f8 from_float16(halves8 h) {
#if defined(X86) && defined(__F16C__)
    return (f8)_mm256_cvtph_ps((__m128i)h);
#else
    u8x wide = widen(h);
    // Exponents of float16 have another bias: one multiplication corrects it, for subnormal numbers too.
    f8 magnitude = (f8)((wide & 0x7fff) << 13) * all(0x1p112f);
    u8x special = (u8x)((wide & 0x7c00) == 0x7c00) & 0x7f800000;
    return (f8)((u8x)magnitude | special | ((wide & 0x8000) << 16));
#endif
}

// E4M3, divided by 256: shifted by a bit, they are float16, which has one bit more of exponent.
static inline f8 from_float8(const uint8_t *from) {
    typedef int16_t shorts8 __attribute__((vector_size(16)));
    shorts8 h;
#if defined(X86)
    h = (shorts8)_mm_unpacklo_epi8(_mm_setzero_si128(), _mm_loadl_epi64((const __m128i *)from));
#else
    for (int i = 0; i < 8; i++) h[i] = (int16_t)(from[i] << 8);
#endif
    return from_float16((halves8)((h >> 1) & (int16_t)0xBFFF));  // the sign's copy is the new bit
}

// The values of codes 0 to 15.
static inline f8 look_up(i8x codes, const f8 *table) {
#if defined(X86) && defined(__AVX512VL__)
    return (f8)_mm256_permutex2var_ps((__m256)table[0], (__m256i)codes, (__m256)table[1]);
#elif defined(X86)
    const __m256 low = _mm256_permutevar8x32_ps((__m256)table[0], (__m256i)codes);
    const __m256 high = _mm256_permutevar8x32_ps((__m256)table[1], (__m256i)codes);
    return (f8)_mm256_blendv_ps(low, high, (__m256)(codes << 28));
#else
    f8 values;
    for (int i = 0; i < 8; i++) values[i] = ((const float *)table)[codes[i]];
    return values;
#endif
}

static inline f8 load_numbers(const void *from, int64_t index, int kind) {
    if (kind == FLOAT32) return load<f8>((const float *)from + index);
    halves8 h = load<halves8>((const uint16_t *)from + index);
    return kind == BFLOAT16 ? from_bfloat16(h) : from_float16(h);
}

static inline int64_t bytes_of(int kind) { return kind == FLOAT32 ? 4 : 2; }

// The last, incomplete 8 numbers, without reading past the end.
static inline f8 load_last(const void *from, int64_t index, int64_t count, int kind) {
    float buffer[8] = {};
    memcpy(buffer, (const char *)from + index * bytes_of(kind), count * bytes_of(kind));
    return load_numbers(buffer, 0, kind);
}

// ---- threads ----
//
// A pool of our own, which needs no header of torch's. Threads take pieces from a shared counter, so a thread that the
// system delays holds up only one piece. (OpenMP waits until all threads have started, and its threads spin for
// milliseconds after an operation: a decode step must not mix both kinds.)

typedef void (*Piece)(void *job, int64_t index);

static inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Iterations that an idle worker spins before it sleeps: some microseconds, as a decode step's next product comes soon.
static const int SPINS = 4000;

struct Pool {
    std::mutex busy, sleep;
    std::condition_variable wake;
    std::atomic<uint64_t> round{0}, open{0};
    std::atomic<int> active{0}, sleeping{0}, wanted{0};
    std::atomic<int64_t> next{0};
    int64_t count = 0;
    Piece piece = nullptr;
    void *job = nullptr;
    int workers = 0;

    void take() {
        for (int64_t i; (i = next.fetch_add(1)) < count;) piece(job, i);
    }

    void work(int number, uint64_t seen) {
        for (;;) {
            for (int i = 0; i < SPINS && round.load() == seen; i++) relax();
            if (round.load() == seen) {
                std::unique_lock<std::mutex> lock(sleep);
                sleeping.fetch_add(1);
                wake.wait(lock, [&] { return round.load() != seen; });
                sleeping.fetch_sub(1);
            }
            seen = round.load();
            active.fetch_add(1);
            if (open.load() == seen && number < wanted.load()) take();
            active.fetch_sub(1);
        }
    }

    void run(int threads, int64_t pieces, Piece what, void *with) {
        std::unique_lock<std::mutex> alone(busy, std::defer_lock);
        if (threads < 2 || pieces < 2 || !alone.try_lock()) {
            for (int64_t i = 0; i < pieces; i++) what(with, i);
            return;
        }
        try {
            for (; workers < threads - 1; workers++) std::thread(&Pool::work, this, workers, round.load()).detach();
        } catch (...) {  // no more threads to get: use those there are
        }
        count = pieces, piece = what, job = with;
        wanted.store(threads - 1);
        next.store(0);
        open.store(round.load() + 1);
        round.fetch_add(1);
        if (sleeping.load() > 0) {
            { std::lock_guard<std::mutex> lock(sleep); }
            wake.notify_all();
        }
        take();
        open.store(0);
        while (active.load() > 0) relax();
    }
};

static void parallel(int threads, int64_t pieces, Piece what, void *with) {
    static std::atomic<Pool *> pool{nullptr};
    static std::atomic<int> owner{0};
    int self = getpid();
    if (owner.load() != self) {  // first use, or a fork, which threads do not survive; the old pool leaks.
        static std::mutex making;
        std::lock_guard<std::mutex> lock(making);
        if (owner.load() != self) pool.store(new Pool), owner.store(self);
    }
    pool.load()->run(threads, pieces, what, with);
}

// A growing buffer that its thread keeps.
struct Buffer {
    void *base = nullptr;
    size_t size = 0;
    ~Buffer() { free(base); }
    char *get(size_t bytes) {
        if (bytes > size) {
            free(base);
            base = aligned_alloc(64, size = (bytes + 4095) / 4096 * 4096);
            if (!base) size = 0;
        }
        return (char *)base;
    }
};

// ---- packed matrices ----

struct Matrix {
    const uint8_t *rows;
    const void *scale;
    int64_t n, k, row_bytes, groups;
    int bits, scale_kind;
    const float *table = nullptr;  // the values of all codes; none if numbers are integers

    int64_t blocks32() const { return (k + 63) / 64 * 2; }
    int64_t group() const { return groups == 1 ? blocks32() * 32 : k / groups; }
    const uint8_t *row(int64_t i) const { return rows + i * row_bytes; }

    // A row's scales as float32, padded to a multiple of 8.
    void scales(int64_t i, float *to) const {
        const char *from = (const char *)scale + i * groups * bytes_of(scale_kind);
        int64_t g = 0;
        for (; g + 8 <= groups; g += 8) {
            f8 v = load_numbers(from, g, scale_kind);
            memcpy(to + g, &v, 32);
        }
        if (g < groups) {
            f8 v = load_last(from, g, groups - g, scale_kind);
            memcpy(to + g, &v, 32);
        }
    }
};

static int64_t eights(int64_t count) { return (count + 7) / 8 * 8; }

// ---- 8-bit dot products: each of 8 lanes sums 4 products ----

#if defined(X86) && (defined(__AVX512VNNI__) && defined(__AVX512VL__) || defined(__AVXVNNI__))
typedef i8x Sums;
static inline Sums dot(Sums s, bytes32 w, bytes32 a) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return (Sums)_mm256_dpbusd_epi32((__m256i)s, (__m256i)w, (__m256i)a);
#else
    return (Sums)_mm256_dpbusd_avx_epi32((__m256i)s, (__m256i)w, (__m256i)a);
#endif
}
static inline i8x total(Sums s) { return s; }
#elif defined(X86)
typedef __m256i Sums;  // 16 lanes of 16 bits, each with room for pairs of up to eight products of a nibble and 127
static inline Sums dot(Sums s, bytes32 w, bytes32 a) {
    return _mm256_add_epi16(s, _mm256_maddubs_epi16((__m256i)w, (__m256i)a));
}
static inline i8x total(Sums s) { return (i8x)_mm256_madd_epi16(s, _mm256_set1_epi16(1)); }
#elif defined(ARM)
struct Sums {
    int32x4_t half[2];
};
static inline Sums dot(Sums s, bytes32 w, bytes32 a) {
    int8x16_t wide[2], narrow[2];
    memcpy(wide, &w, 32);
    memcpy(narrow, &a, 32);
    return {{vdotq_s32(s.half[0], wide[0], narrow[0]), vdotq_s32(s.half[1], wide[1], narrow[1])}};
}
static inline i8x total(Sums s) { return load<i8x>(s.half); }
#else
typedef i8x Sums;
static inline Sums dot(Sums s, bytes32 w, bytes32 a) {
    for (int i = 0; i < 32; i++) s[i / 4] += (int32_t)w[i] * (int8_t)a[i];
    return s;
}
static inline i8x total(Sums s) { return s; }
#endif

static inline f8 floats(i8x v) { return __builtin_convertvector(v, f8); }

static inline bytes32 same_four(const int8_t *from) {
    u8x v = u8x{} + load<uint32_t>(from);
    return (bytes32)v;
}

// ---- 8-bit activations ----
//
// ``values``: for 4-bit weights, each 64 are stored as 32 even ones, then 32 odd ones, like the nibbles (``wide``: each
// 128 as 64 and 64); else in order.
// ``scale`` has four copies for each 32 values: lanes 0 to 3 of a sum over 64 belong to the first 32. ``offset`` is what
// each group's unsigned weights add.

struct Activations {
    const float *x;
    const Matrix *w;
    int64_t rows;
    int8_t *values;
    float *scale, *offset;
    bool wide;

    int64_t length() const { return w->blocks32() * 32; }
    int64_t groups() const { return eights(w->groups); }
};

static void quantize_row(void *job, int64_t m) {
    const Activations &a = *(Activations *)job;
    const Matrix &w = *a.w;
    int8_t *values = a.values + m * a.length();
    float *scale = a.scale + m * w.blocks32() * 4, *offset = a.offset + m * a.groups();
    memset(offset, 0, a.groups() * sizeof(float));
    if (m >= a.rows) {  // padding of a block of rows
        memset(values, 0, a.length());
        memset(scale, 0, w.blocks32() * 4 * sizeof(float));
        return;
    }
    for (int64_t b = 0; b < w.blocks32(); b++) {
        f8 v[4] = {};
        int64_t left = w.k - b * 32;
        if (left > 0) memcpy(v, a.x + m * w.k + b * 32, (left < 32 ? left : 32) * sizeof(float));
        f8 most = {}, finite = {};
        for (int i = 0; i < 4; i++) {
            f8 magnitude = (f8)((u8x)v[i] & 0x7fffffff);
            most = magnitude > most ? magnitude : most;
            finite += v[i] * 0.0f;
        }
        float top = 0;
        for (int i = 0; i < 8; i++) top = most[i] > top ? most[i] : top;
        float inverse = top > 0 ? 127 / top : 0;
        if (inverse > FLT_MAX) inverse = top = 0;  // too small to matter
        const float by = top / 127 + sum(finite);  // NaN if a value is not finite, so that it reaches the result
        for (int i = 0; i < 4; i++) scale[b * 4 + i] = by;
        i8x q[4], added = {};
        for (int i = 0; i < 4; i++) {
            q[i] = (i8x)(v[i] * inverse + 12582912.0f) - (i8x)all(12582912.0f);  // rounds to the nearest
            added += q[i];
        }
        int32_t flat[32];
        memcpy(flat, q, sizeof flat);
        if (w.bits == 4) {
            const int64_t half = a.wide ? 64 : 32, in_half = half / 16;
            int8_t *even = values + b / in_half * 2 * half + b % in_half * 16;
            for (int i = 0; i < 16; i++) even[i] = flat[2 * i], even[i + half] = flat[2 * i + 1];
        } else {
            for (int i = 0; i < 32; i++) values[b * 32 + i] = flat[i];
        }
        offset[b * 32 / w.group()] -= by * sum(floats(added)) * (1 << (w.bits - 1));
    }
}

// ---- few rows: along the rows of the matrix, in memory order ----

const int PREFETCH_BYTES = 6144;  // past the page boundary at which hardware prefetching stops

struct Job {
    const Matrix *w;
    const Activations *a;
    const float *x;  // [rows, length], arranged for the kernel
    int64_t rows, piece, length;
    float *out;
    int first, kind;
};

// R rows of the matrix at a time, so that their sums do not wait for one another.
template <int M, int R> static inline void rows_int8(const Job &j, int64_t n, float *scale) {
    const Matrix &w = *j.w;
    const Activations &a = *j.a;
    const int64_t blocks = w.blocks32(), whole = w.k / 64, stride = eights(w.groups);
    const bool narrow = w.group() == 32;
    const int64_t in_group = narrow ? 1 : w.group() / 64;
    const uint8_t *rows[R];
    for (int r = 0; r < R; r++) {
        rows[r] = w.row(n + r);
        w.scales(n + r, scale + r * stride);
    }
    f8 sums[R][M] = {};
    auto block = [&](int64_t b, int r, const uint8_t *from, f8 (&into)[R][M]) {
        bytes32 packed = load<bytes32>(from), low = packed & 15, high = packed >> 4;
        for (int m = 0; m < M; m++) {
            const int8_t *v = a.values + m * a.length() + b * 64;
            Sums s = dot(dot(Sums{}, low, load<bytes32>(v)), high, load<bytes32>(v + 32));
            into[r][m] += floats(total(s)) * load<f8>(a.scale + (m * blocks + b * 2) * 4);
        }
    };
    auto last_block = [&](int64_t b, int r, f8 (&into)[R][M]) {
        uint8_t last[32] = {};
        memcpy(last, rows[r] + b * 32, w.row_bytes - b * 32);
        block(b, r, last, into);
    };
    if (narrow) {
        for (int64_t b = 0; b < blocks / 2; b++) {
            f8 part[R][M] = {};
            for (int r = 0; r < R; r++) {
                const float *by = scale + r * stride + 2 * b;
                const f8 two = {by[0], by[0], by[0], by[0], by[1], by[1], by[1], by[1]};
                if (b < whole) block(b, r, rows[r] + b * 32, part);
                else last_block(b, r, part);
                for (int m = 0; m < M; m++) sums[r][m] += part[r][m] * two;
            }
        }
    } else {
        for (int64_t g = 0, b = 0; g < w.groups; g++) {
            f8 part[R][M] = {};
            const int64_t stop = b + in_group;
            for (; b + 2 <= stop && b + 2 <= whole; b += 2)  // a cache line at a time
                for (int r = 0; r < R; r++) {
                    __builtin_prefetch(rows[r] + R * w.row_bytes + b * 32);  // the next R rows
                    block(b, r, rows[r] + b * 32, part);
                    block(b + 1, r, rows[r] + b * 32 + 32, part);
                }
            for (; b < stop; b++)
                for (int r = 0; r < R; r++)
                    if (b < whole) block(b, r, rows[r] + b * 32, part);
                    else last_block(b, r, part);
            for (int r = 0; r < R; r++)
                for (int m = 0; m < M; m++) sums[r][m] += part[r][m] * scale[r * stride + g];
        }
    }
    for (int m = 0; m < M && m < j.rows - j.first; m++) {
        const float *offset = a.offset + m * a.groups();
        for (int r = 0; r < R; r++) {
            for (int64_t g = 0; g < w.groups; g += 8) sums[r][m] += load<f8>(offset + g) * load<f8>(scale + r * stride + g);
            j.out[(j.first + m) * w.n + n + r] = sum(sums[r][m]);
        }
    }
}

template <int M> static void few_int8(void *job, int64_t index) {
    constexpr int R = M <= 2 ? 2 : 1;
    const Job &j = *(Job *)job;
    const Matrix &w = *j.w;
    const int64_t end = w.n < (index + 1) * j.piece ? w.n : (index + 1) * j.piece;
    static thread_local Buffer buffer;
    float *scale = (float *)buffer.get(R * eights(w.groups) * sizeof(float));
    int64_t n = index * j.piece;
    for (; n + R <= end; n += R) rows_int8<M, R>(j, n, scale);
    for (; n < end; n++) rows_int8<M, 1>(j, n, scale);
}

// The same with vectors of 64 bytes, for groups of 128 elements or a multiple, R rows of the matrix at a time: sums of
// several rows do not wait for one another.
#if defined(X86) && defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define WIDE 1

template <int M, int R> static inline void wide_rows_int8(const Job &j, int64_t n, float *scale) {
    const Matrix &w = *j.w;
    const Activations &a = *j.a;
    const int64_t blocks = w.blocks32(), in_group = w.group() / 128, stride = eights(w.groups);
    const __m512i nibble = _mm512_set1_epi8(15);
    const uint8_t *row = w.row(n);
    for (int r = 0; r < R; r++) w.scales(n + r, scale + r * stride);
    __m512 sums[R][M];
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sums[r][m] = _mm512_setzero_ps();
    for (int64_t g = 0, b = 0; g < w.groups; g++) {
        __m512 by[R];
        for (int r = 0; r < R; r++) by[r] = _mm512_set1_ps(scale[r * stride + g]);
        for (const int64_t stop = b + in_group; b < stop; b++) {
            for (int r = 0; r < R; r++) {
                const uint8_t *from = row + r * w.row_bytes + b * 64;
                __builtin_prefetch(from + R * w.row_bytes);
                const __m512i packed = _mm512_loadu_si512(from), low = _mm512_and_si512(packed, nibble);
                const __m512i high = _mm512_and_si512(_mm512_srli_epi16(packed, 4), nibble);
                for (int m = 0; m < M; m++) {
                    const int8_t *v = a.values + m * a.length() + b * 128;
                    __m512i s = _mm512_dpbusd_epi32(_mm512_setzero_si512(), low, _mm512_loadu_si512(v));
                    s = _mm512_dpbusd_epi32(s, high, _mm512_loadu_si512(v + 64));
                    const __m512 part = _mm512_mul_ps(by[r], _mm512_loadu_ps(a.scale + (m * blocks + b * 4) * 4));
                    sums[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s), part, sums[r][m]);
                }
            }
        }
    }
    for (int m = 0; m < M && m < j.rows - j.first; m++) {
        const float *offset = a.offset + m * a.groups();
        for (int r = 0; r < R; r++) {
            f8 last = {};
            for (int64_t g = 0; g < w.groups; g += 8) last += load<f8>(offset + g) * load<f8>(scale + r * stride + g);
            j.out[(j.first + m) * w.n + n + r] = _mm512_reduce_add_ps(sums[r][m]) + sum(last);
        }
    }
}

template <int M> static void few_int8_wide(void *job, int64_t index) {
    constexpr int R = 4 / M;
    const Job &j = *(Job *)job;
    const Matrix &w = *j.w;
    const int64_t end = w.n < (index + 1) * j.piece ? w.n : (index + 1) * j.piece;
    static thread_local Buffer buffer;
    float *scale = (float *)buffer.get(R * eights(w.groups) * sizeof(float));
    int64_t n = index * j.piece;
    for (; n + R <= end; n += R) wide_rows_int8<M, R>(j, n, scale);
    for (; n < end; n++) wide_rows_int8<M, 1>(j, n, scale);
}
#else
#define WIDE 0
template <int M> static void few_int8_wide(void *, int64_t) {}
#endif

// ---- few rows in float32 ----

enum Form { FOUR_BITS, EIGHT_BITS, BRAIN, HALF, FLOAT8, TABLE };

static constexpr bool four_bits(int form) { return form == FOUR_BITS || form == TABLE; }
static constexpr bool has_scales(int form) { return form != BRAIN && form != HALF; }
static constexpr int64_t form_bytes(int form) { return four_bits(form) ? 16 : has_scales(form) ? 32 : 64; }  // of 32 elements

// 32 elements as float32, E4M3 divided by 256; 4-bit ones as 8 even and 8 odd ones, twice.
template <Form F> static inline void decode(const uint8_t *from, f8 *to, const f8 *table) {
    for (int i = 0; i < 4; i += 2) {
        if (four_bits(F)) {
            i8x v = (i8x)widen(load<bytes8>(from + i * 4));
            to[i] = F == TABLE ? look_up(v & 15, table) : floats((v & 15) - 8);
            to[i + 1] = F == TABLE ? look_up(v >> 4, table) : floats((v >> 4) - 8);
        } else {
            for (int o = i; o < i + 2; o++) {
                if (F == EIGHT_BITS) to[o] = floats((i8x)widen(load<bytes8>(from + o * 8)) - 128);
                if (F == BRAIN) to[o] = from_bfloat16(load<halves8>(from + o * 16));
                if (F == HALF) to[o] = from_float16(load<halves8>(from + o * 16));
                if (F == FLOAT8) to[o] = from_float8(from + o * 8);
            }
        }
    }
}

template <int M, Form F> static void few_float(void *job, int64_t index) {
    const Job &j = *(Job *)job;
    const Matrix &w = *j.w;
    const int64_t end = w.n < (index + 1) * j.piece ? w.n : (index + 1) * j.piece;
    const int64_t unit = form_bytes(F), whole = w.k / 32, blocks = (w.k + 31) / 32;
    const int64_t in_group = w.groups == 1 ? blocks : w.k / w.groups / 32;
    constexpr int CHAINS = M <= 2 ? 4 : M <= 4 ? 2 : 1;  // independent additions
    static thread_local Buffer buffer;
    float *scale = (float *)buffer.get(eights(w.groups) * sizeof(float));
    f8 table[2] = {};
    if (F == TABLE) memcpy(table, w.table, sizeof(table));
    for (int64_t n = index * j.piece; n < end; n++) {
        const uint8_t *row = w.row(n);
        if (has_scales(F)) w.scales(n, scale);
        f8 sums[M] = {};
        for (int64_t g = 0, b = 0; g < w.groups; g++) {
            f8 part[M][CHAINS] = {};
            for (int64_t stop = b + in_group; b < stop; b++) {
                f8 values[4];
                if (b < whole) {
                    __builtin_prefetch(row + b * unit + PREFETCH_BYTES);
                    decode<F>(row + b * unit, values, table);
                } else {
                    uint8_t last[64] = {};
                    memcpy(last, row + b * unit, w.row_bytes - b * unit < unit ? w.row_bytes - b * unit : unit);
                    decode<F>(last, values, table);
                }
                for (int i = 0; i < 4; i++)
                    for (int m = 0; m < M; m++)
                        part[m][i % CHAINS] += values[i] * load<f8>(j.x + m * j.length + b * 32 + i * 8);
            }
            for (int m = 0; m < M; m++) {
                f8 whole_part = part[m][0];
                for (int c = 1; c < CHAINS; c++) whole_part += part[m][c];
                sums[m] += has_scales(F) ? whole_part * (F == FLOAT8 ? 256 * scale[g] : scale[g]) : whole_part;
            }
        }
        for (int m = 0; m < M && m < j.rows - j.first; m++) j.out[(j.first + m) * w.n + n] = sum(sums[m]);
    }
}

// ---- many rows, 8-bit: eight rows of the matrix at a time, transposed so that each lane is a row ----

// ``to`` [dwords][8 rows][4 bytes]
static void transpose(const Matrix &w, int64_t n, uint8_t *to, int64_t dwords) {
    const uint8_t *rows[8];
    for (int i = 0; i < 8; i++) rows[i] = w.row(n + i < w.n ? n + i : w.n - 1);
    for (int64_t d = 0; d < dwords; d += 8) {
        const int64_t left = w.row_bytes - d * 4;
        u8x v[8] = {};
        for (int i = 0; i < 8; i++)
            if (left >= 32) v[i] = load<u8x>(rows[i] + d * 4);
            else if (left > 0) memcpy(&v[i], rows[i] + d * 4, left);
#if defined(X86)
        __m256i a[8], b[8];
        for (int i = 0; i < 8; i += 2) {
            a[i] = _mm256_unpacklo_epi32((__m256i)v[i], (__m256i)v[i + 1]);
            a[i + 1] = _mm256_unpackhi_epi32((__m256i)v[i], (__m256i)v[i + 1]);
        }
        for (int i = 0; i < 8; i += 4) {
            b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
            b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
            b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
            b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
        }
        for (int i = 0; i < 4; i++) {
            v[i] = (u8x)_mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
            v[i + 4] = (u8x)_mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
        }
#else
        u8x transposed[8];
        for (int i = 0; i < 8; i++)
            for (int o = 0; o < 8; o++) transposed[i][o] = v[o][i];
        memcpy(v, transposed, sizeof v);
#endif
        memcpy(to + d * 32, v, sizeof v);
    }
}

// M rows of activations from row m on, times the eight transposed rows of the matrix at n.
template <int M, int BITS>
static void multiply(const Job &j, const uint8_t *transposed, const f8 *scale, int64_t m, int64_t n) {
    const Matrix &w = *j.w;
    const Activations &a = *j.a;
    const int64_t length = a.length(), blocks = w.blocks32(), in_group = w.groups == 1 ? blocks : w.group() / 32;
    const int8_t *values = a.values + m * length;
    const float *scales = a.scale + m * blocks * 4, *offsets = a.offset + m * a.groups();
    f8 sums[M] = {};
    for (int64_t g = 0, b = 0; g < w.groups; g++) {
        f8 part[M];
        for (int i = 0; i < M; i++) part[i] = all(offsets[i * a.groups() + g]);
        for (int64_t stop = b + in_group; b < stop; b++) {
            Sums low[M] = {}, high[M] = {};
            const uint8_t *from = transposed + b * (BITS * 32);
            if (BITS == 4) {
                const int8_t *v = values + b / 2 * 64 + b % 2 * 16;
                for (int d = 0; d < 4; d++) {
                    bytes32 packed = load<bytes32>(from + d * 32), l = packed & 15, h = packed >> 4;
                    for (int i = 0; i < M; i++) {
                        low[i] = dot(low[i], l, same_four(v + i * length + d * 4));
                        low[i] = dot(low[i], h, same_four(v + i * length + d * 4 + 32));
                    }
                }
                for (int i = 0; i < M; i++) part[i] += floats(total(low[i])) * scales[(i * blocks + b) * 4];
            } else {
                const int8_t *v = values + b * 32;
                for (int d = 0; d < 8; d++) {
                    bytes32 packed = load<bytes32>(from + d * 32), l = packed & 15, h = packed >> 4;
                    for (int i = 0; i < M; i++) {
                        bytes32 four = same_four(v + i * length + d * 4);
                        low[i] = dot(low[i], l, four);
                        high[i] = dot(high[i], h, four);
                    }
                }
                for (int i = 0; i < M; i++)
                    part[i] += floats(total(low[i]) + total(high[i]) * 16) * scales[(i * blocks + b) * 4];
            }
        }
        for (int i = 0; i < M; i++) sums[i] += part[i] * scale[g];
    }
    const int64_t left = w.n - n < 8 ? w.n - n : 8;
    for (int i = 0; i < M && m + i < j.rows; i++) memcpy(j.out + (m + i) * w.n + n, &sums[i], left * sizeof(float));
}

template <int BITS> static void many_int8(void *job, int64_t index) {
    const Job &j = *(Job *)job;
    const Matrix &w = *j.w;
    constexpr int M = BITS == 4 ? 6 : 4;
    const int64_t end = w.n < (index + 1) * j.piece ? w.n : (index + 1) * j.piece;
    const int64_t dwords = w.blocks32() * BITS, strip = dwords * 32, strips = (end - index * j.piece + 7) / 8;
    static thread_local Buffer buffer;
    static thread_local Buffer line;
    uint8_t *transposed = (uint8_t *)buffer.get(strips * (strip + w.groups * sizeof(f8)));
    float *scale = (float *)(transposed + strips * strip), *row = (float *)line.get(eights(w.groups) * sizeof(float));
    for (int64_t s = 0; s < strips; s++) {
        const int64_t n = index * j.piece + s * 8;
        transpose(w, n, transposed + s * strip, dwords);
        for (int i = 0; i < 8; i++) {
            w.scales(n + i < w.n ? n + i : w.n - 1, row);
            for (int64_t g = 0; g < w.groups; g++) scale[(s * w.groups + g) * 8 + i] = row[g];
        }
    }
    for (int64_t m = 0; m < j.rows; m += M)
        for (int64_t s = 0; s < strips; s++) {
            const uint8_t *t = transposed + s * strip;
            const f8 *by = (const f8 *)(scale + s * w.groups * 8);
            const int64_t n = index * j.piece + s * 8;
            if (j.rows - m >= M || (M == 4 && j.rows - m == 3)) multiply<M, BITS>(j, t, by, m, n);
            else if (j.rows - m > 2) multiply<4, BITS>(j, t, by, m, n), M > 4 && j.rows - m > 4 ? multiply<2, BITS>(j, t, by, m + 4, n) : void();
            else multiply<2, BITS>(j, t, by, m, n);
        }
}

// ---- dequantization to float32, for torch's products ----

// Numbers of a row from an element on, by their codes, times a scale. The element is the first of a byte, or nothing is
// done 8 or 16 at a time.
static void decode_codes(const Matrix &w, const uint8_t *row, int64_t element, int64_t count, float by, float *to) {
    int64_t i = 0;
    if (w.bits == 8) {
        for (; i + 8 <= count; i += 8) {
            const f8 values = from_float8(row + element + i) * (256 * by);
            memcpy(to + i, &values, sizeof(values));
        }
    } else if (element % 2 == 0) {
        f8 table[2];
        memcpy(table, w.table, sizeof(table));
        for (; i + 16 <= count; i += 16) {
            const i8x v = (i8x)widen(load<bytes8>(row + (element + i) / 2));
            const f8 even = look_up(v & 15, table) * by, odd = look_up(v >> 4, table) * by;
            for (int lane = 0; lane < 8; lane++) {
                to[i + 2 * lane] = even[lane];
                to[i + 2 * lane + 1] = odd[lane];
            }
        }
    }
    for (; i < count; i++) {
        const int64_t e = element + i;
        to[i] = w.table[w.bits == 8 ? row[e] : row[e / 2] >> e % 2 * 4 & 15] * by;
    }
}

static void decode_rows(void *job, int64_t index) {
    const Job &j = *(Job *)job;
    const Matrix &w = *j.w;
    const int64_t size = w.k / w.groups;
    static thread_local Buffer buffer;
    float *scale = (float *)buffer.get(eights(w.groups) * sizeof(float));
    for (int64_t n = index * j.piece; n < w.n && n < (index + 1) * j.piece; n++) {
        const uint8_t *row = w.row(n);
        float *to = j.out + n * w.k;
        w.scales(n, scale);
        for (int64_t g = 0; g < w.groups; g++, to += size) {
            const float by = scale[g];
            if (w.table) {
                decode_codes(w, row, g * size, size, by, to);
            } else if (w.bits == 8) {
                for (int64_t i = 0; i < size; i++) to[i] = (float)((int)row[g * size + i] - 128) * by;
            } else if (size % 2 == 0) {
                const uint8_t *from = row + g * size / 2;
                for (int64_t i = 0; i < size / 2; i++) {
                    to[2 * i] = (float)((int)(from[i] & 15) - 8) * by;
                    to[2 * i + 1] = (float)((int)(from[i] >> 4) - 8) * by;
                }
            } else {
                for (int64_t i = 0, e = g * size; i < size; i++, e++)
                    to[i] = (float)((row[e / 2] >> e % 2 * 4 & 15) - 8) * by;
            }
        }
    }
}

// ---- attention of a few rows over many keys, without a mask ----
//
// Pieces are 256 keys of one head, so that more threads than heads have work; partial results are merged at the end.

const int64_t KEYS = 256;
const int ROWS = 4;

struct Attention {
    const float *q, *k, *v;  // q [heads, rows, dim]; strides of k and v follow
    int64_t heads, rows, keys, dim, k_head, k_key, v_head, v_key;
    float *found;  // [heads, pieces, rows, 2 + dim]: largest score, sum of weights, weighted values
    int64_t pieces() const { return (keys + KEYS - 1) / KEYS; }
};

// e^x for x <= 0, accurate to the last bits of float32.
static inline f8 exponential(f8 x) {
    const f8 least = all(-87.0f), magic = all(12582912.0f);
    x = x < least ? least : x;
    const f8 n = (x * 1.44269504f + magic) - magic;
    const f8 r = x - n * 0.693359375f + n * 2.12194440e-4f;
    f8 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return (p * r * r + r + 1.0f) * (f8)((__builtin_convertvector(n, i8x) + 127) << 23);
}

static void attend(void *job, int64_t index) {
    const Attention &a = *(Attention *)job;
    const int64_t head = index / a.pieces(), first = index % a.pieces() * KEYS, dim = a.dim;
    const int64_t count = a.keys - first < KEYS ? a.keys - first : KEYS;
    const float *k = a.k + head * a.k_head + first * a.k_key, *v = a.v + head * a.v_head + first * a.v_key;
    static thread_local Buffer buffer;
    float *weights = (float *)buffer.get(ROWS * (KEYS + dim) * sizeof(float)), *q = weights + ROWS * KEYS;
    for (int64_t start = 0; start < a.rows; start += ROWS) {
        const int64_t here = a.rows - start < ROWS ? a.rows - start : ROWS;
        const float scale = 1 / __builtin_sqrtf((float)dim);
        memset(q, 0, ROWS * dim * sizeof(float));
        for (int64_t i = 0; i < here * dim; i++) q[i] = a.q[(head * a.rows + start) * dim + i] * scale;
        for (int64_t s = 0; s < count; s++) {
            f8 dots[ROWS] = {};
            for (int64_t d = 0; d < dim; d += 8) {
                const f8 key = load<f8>(k + s * a.k_key + d);
                for (int r = 0; r < ROWS; r++) dots[r] += key * load<f8>(q + r * dim + d);
            }
            for (int r = 0; r < ROWS; r++) weights[r * KEYS + s] = sum(dots[r]);
        }
        float *found = a.found + (index * a.rows + start) * (2 + dim);
        for (int r = 0; r < ROWS; r++) {
            float *w = weights + r * KEYS, most = w[0];
            for (int64_t s = 1; s < count; s++) most = w[s] > most ? w[s] : most;
            for (int64_t s = count; s < KEYS && s % 8; s++) w[s] = -FLT_MAX;
            f8 total = {};
            for (int64_t s = 0; s < count; s += 8) {
                const f8 e = exponential(load<f8>(w + s) - most);
                memcpy(w + s, &e, 32);
                total += e;
            }
            if (r < here) found[r * (2 + dim)] = most, found[r * (2 + dim) + 1] = sum(total);
        }
        for (int64_t d = 0; d < dim; d += 8) {
            f8 values[ROWS] = {};
            for (int64_t s = 0; s < count; s++) {
                const f8 value = load<f8>(v + s * a.v_key + d);
                for (int r = 0; r < ROWS; r++) values[r] += value * weights[r * KEYS + s];
            }
            for (int r = 0; r < here; r++) memcpy(found + r * (2 + dim) + 2 + d, &values[r], 32);
        }
    }
}

// ---- norm, rotation and gate of a few rows: too little work for threads or for separate operations ----

static void norm_row(const float *x, const float *weight, int64_t size, float eps, float *out) {
    f8 totals[4] = {};
    int64_t i = 0;
    for (; i + 32 <= size; i += 32)
        for (int p = 0; p < 4; p++) {
            const f8 v = load<f8>(x + i + 8 * p);
            totals[p] += v * v;
        }
    float total = sum((totals[0] + totals[1]) + (totals[2] + totals[3]));
    for (; i < size; i++) total += x[i] * x[i];
    const float by = 1 / __builtin_sqrtf(total / (float)size + eps);
    for (i = 0; i < size; i++) out[i] = x[i] * by * weight[i];
}

// One head vector: the rotation pairs element i with i + half.
static void rotate_one(const float *x, const float *cos, const float *sin, int64_t half, float *out) {
    for (int64_t i = 0; i < half; i++) out[i] = x[i] * cos[i] - x[i + half] * sin[i];
    for (int64_t i = 0; i < half; i++) out[i + half] = x[i + half] * cos[i + half] + x[i] * sin[i + half];
}

struct Gate {
    const float *gate, *up;
    float *out;
    int64_t count;
};

const int64_t GATED = 4096;

static void gate_piece(void *job, int64_t index) {
    const Gate &g = *(Gate *)job;
    const int64_t end = (index + 1) * GATED < g.count ? (index + 1) * GATED : g.count;
    for (int64_t i = index * GATED; i < end; i += 8) {
        const int64_t here = end - i < 8 ? end - i : 8;
        f8 x = {}, up = {};
        memcpy(&x, g.gate + i, here * sizeof(float));
        memcpy(&up, g.up + i, here * sizeof(float));
        const f8 e = exponential(x < 0 ? x : -x);  // of -|x|: it cannot overflow
        const f8 value = x * up * (x < 0 ? e : all(1.0f)) / (e + 1.0f);
        memcpy(g.out + i, &value, here * sizeof(float));
    }
}

// ---- what Python calls. Each returns 0, or 1 if out of memory ----

static int64_t pieces(int64_t n, int64_t piece) { return (n + piece - 1) / piece; }

// Rows of the matrix in a piece: about 64 KiB.
static int64_t piece_of(const Matrix &w) {
    const int64_t rows = 65536 / (w.row_bytes + 1) / 8 * 8;
    return rows < 8 ? 8 : rows > 512 ? 512 : rows;
}

static int64_t few_at_once(int64_t rows) { return rows <= 1 ? 1 : rows <= 2 ? 2 : rows <= 4 ? 4 : 8; }

static thread_local Buffer kept;

extern "C" {

int mllama_version() { return 1; }

// out [m, n] = x [m, k] times the packed matrix, with 8-bit activations. Up to ``few`` rows read the matrix row by row.
int mllama_packed_int8(const float *x, int64_t m, const uint8_t *packed, const void *scale, int scale_kind, int64_t n,
                       int64_t k, int64_t row_bytes, int64_t groups, int bits, float *out, int few, int threads) {
    const Matrix w{packed, scale, n, k, row_bytes, groups, bits, scale_kind};
    const int64_t rows = (m + 11) / 12 * 12;  // whole blocks of 2, 4 and 6
    const int64_t length = w.blocks32() * 32, values = rows * length;
    const int64_t scales = rows * w.blocks32() * 4 * sizeof(float), offsets = rows * eights(groups) * sizeof(float);
    char *memory = kept.get(values + scales + offsets);
    if (!memory) return 1;
    Activations a{x, &w, m, (int8_t *)memory, (float *)(memory + values), (float *)(memory + values + scales), false};
    a.wide = WIDE && m <= few && bits == 4 && w.group() % 128 == 0 && k % 128 == 0;
    parallel(m * k < 65536 ? 1 : threads, rows, quantize_row, &a);
    Job job{&w, &a, nullptr, m, piece_of(w), length, out, 0, 0};
    if (a.wide) {
        parallel(threads, pieces(n, job.piece), m <= 1 ? few_int8_wide<1> : m <= 2 ? few_int8_wide<2> : few_int8_wide<4>, &job);
    } else if (m <= few && bits == 4) {
        parallel(threads, pieces(n, job.piece), m <= 1 ? few_int8<1> : m <= 2 ? few_int8<2> : few_int8<4>, &job);
    } else {
        job.piece = 32;
        parallel(threads, pieces(n, job.piece), bits == 4 ? many_int8<4> : many_int8<8>, &job);
    }
    return 0;
}

// The same in float32, for few rows. ``form``: 0 and 1 packed in 4 and 8 bits, 2 bfloat16, 3 float16 (no scales), 4 E4M3,
// 5 codes of ``table``.
int mllama_gemv_float(const float *x, int64_t m, const uint8_t *matrix, const void *scale, int scale_kind, int64_t n,
                     int64_t k, int64_t row_bytes, int64_t groups, int form, const float *table, float *out, int threads) {
    const Matrix w{matrix, scale, n, k, row_bytes, groups, four_bits(form) ? 4 : 8, scale_kind, table};
    const int64_t length = w.blocks32() * 32, at_once = few_at_once(m), rows = pieces(m, at_once) * at_once;
    float *arranged = (float *)kept.get(rows * length * sizeof(float));
    if (!arranged) return 1;
    memset(arranged, 0, rows * length * sizeof(float));
    for (int64_t i = 0; i < m; i++) {
        float *to = arranged + i * length;
        if (four_bits(form))
            for (int64_t e = 0; e < k; e++) to[e / 16 * 16 + e % 2 * 8 + e % 16 / 2] = x[i * k + e];
        else memcpy(to, x + i * k, k * sizeof(float));
    }
    static const Piece kernels[4][6] = {
        {few_float<1, FOUR_BITS>, few_float<1, EIGHT_BITS>, few_float<1, BRAIN>, few_float<1, HALF>,
         few_float<1, FLOAT8>, few_float<1, TABLE>},
        {few_float<2, FOUR_BITS>, few_float<2, EIGHT_BITS>, few_float<2, BRAIN>, few_float<2, HALF>,
         few_float<2, FLOAT8>, few_float<2, TABLE>},
        {few_float<4, FOUR_BITS>, few_float<4, EIGHT_BITS>, few_float<4, BRAIN>, few_float<4, HALF>,
         few_float<4, FLOAT8>, few_float<4, TABLE>},
        {few_float<8, FOUR_BITS>, few_float<8, EIGHT_BITS>, few_float<8, BRAIN>, few_float<8, HALF>,
         few_float<8, FLOAT8>, few_float<8, TABLE>},
    };
    const int size = at_once == 1 ? 0 : at_once == 2 ? 1 : at_once == 4 ? 2 : 3;
    for (int64_t first = 0; first < m; first += at_once) {
        Job job{&w, nullptr, arranged + first * length, m, piece_of(w), length, out, (int)first, 0};
        parallel(threads, pieces(n, job.piece), kernels[size][form], &job);
    }
    return 0;
}

// The matrix [n, k] in float32, of integers or, with a ``table``, of codes.
int mllama_decode(const uint8_t *packed, const void *scale, int scale_kind, int64_t n, int64_t k, int64_t row_bytes,
                  int64_t groups, int bits, const float *table, float *out, int threads) {
    const Matrix w{packed, scale, n, k, row_bytes, groups, bits, scale_kind, table};
    Job job{&w, nullptr, nullptr, 0, 16, k, out, 0, 0};
    parallel(threads, pieces(n, job.piece), decode_rows, &job);
    return 0;
}

// out [rows, size] = x / root-mean-square(x) * weight.
int mllama_rms_norm(const float *x, const float *weight, int64_t rows, int64_t size, float eps, float *out) {
    for (int64_t r = 0; r < rows; r++) norm_row(x + r * size, weight, size, eps, out + r * size);
    return 0;
}

// out [batch, heads, rows, dim] = x rotated by angles [batch or 1, rows, dim]; strides are in elements.
int mllama_apply_rope(const float *x, int64_t batch, int64_t heads, int64_t rows, int64_t dim, int64_t x_batch,
                  int64_t x_head, int64_t x_row, const float *cos, const float *sin, int64_t angle_batch, float *out) {
    for (int64_t b = 0; b < batch; b++)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t r = 0; r < rows; r++, out += dim) {
                const int64_t angle = b * angle_batch + r * dim;
                rotate_one(x + b * x_batch + h * x_head + r * x_row, cos + angle, sin + angle, dim / 2, out);
            }
    return 0;
}

// out [count] = silu(gate) * up.
int mllama_silu_and_mul(const float *gate, const float *up, int64_t count, float *out, int threads) {
    Gate job{gate, up, out, count};
    parallel(count < 4 * GATED ? 1 : threads, pieces(count, GATED), gate_piece, &job);
    return 0;
}

// out [heads, rows, dim]: rows of each head attend to all its keys. dim is a multiple of 8; strides are in elements.
int mllama_attention(const float *q, const float *k, const float *v, int64_t heads, int64_t rows, int64_t keys,
                     int64_t dim, int64_t k_head, int64_t k_key, int64_t v_head, int64_t v_key, float *out,
                     int threads) {
    Attention a{q, k, v, heads, rows, keys, dim, k_head, k_key, v_head, v_key, nullptr};
    const int64_t parts = a.pieces(), step = rows * (2 + dim);
    a.found = (float *)kept.get(heads * parts * step * sizeof(float));
    if (!a.found) return 1;
    parallel(heads * parts * rows * dim < 8192 ? 1 : threads, heads * parts, attend, &a);
    for (int64_t i = 0; i < heads * rows; i++) {
        const float *found = a.found + i / rows * parts * step + i % rows * (2 + dim);
        float most = found[0], total = 0;
        for (int64_t p = 1; p < parts; p++) most = found[p * step] > most ? found[p * step] : most;
        float *to = out + i * dim;
        memset(to, 0, dim * sizeof(float));
        for (int64_t p = 0; p < parts; p++) {
            const float by = exponential(all(found[p * step] - most))[0];
            total += found[p * step + 1] * by;
            for (int64_t d = 0; d < dim; d++) to[d] += found[p * step + 2 + d] * by;
        }
        for (int64_t d = 0; d < dim; d++) to[d] /= total;
    }
    return 0;
}
}
