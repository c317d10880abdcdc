// load_mqtt - MQTT 3.1.1, or 5.0 with --version 5, against any broker. --mode is one of
//   flow      --pubs publishers (--pub-qos 0 or 1) to --subs subscribers (--sub-qos); counts receipts, or PUBACKs where nobody subscribes
//   connects  CONNECT, CONNACK, DISCONNECT again and again, --inflight at a time; counts CONNACKs
//   idle      --count connections that stay for --hold seconds; counts CONNACKs, and each must answer a ping at the end
// of a flow: --window   publishes of QoS 1 that one publisher has without PUBACK
//            --credit   messages that may lie between publish and the last of their receipts (0: any number), so that what is counted
//                       is what a broker delivers, not what it drops
//            --filters  wildcard filters of each subscriber; a message matches one filter of one subscriber, another one each time
// A payload begins with the time of sending (8 bytes), the publisher (4) and its sequence number (4): receipts are checked for order and doubles.
#include "load.h"
#define SHARE 65536                      // bytes that a publisher puts out in one turn
typedef struct { u8 *frame; size_t size, topic, id, payload; u32 seq; u16 *free; int nfree; i64 *sent; } source;
enum { FLOW, CONNECTS, IDLE } mode;
static conn *all; static source *sources; static u32 *seen;
static int pubs, subs, pub_qos, sub_qos, window, version, filters, pending; static u64 fan, credit, given_up, opened, pinged;
static const char *host, *label; static int port;

// ---- packets
static u8 *text(u8 *p, const char *s) { size_t n = strlen(s); p16(p, n); memcpy(p + 2, s, n); return p + 2 + n; }
static u8 *head(u8 *p, int first, size_t body) { *p++ = first; do { *p = body % 128; body /= 128; if (body) *p |= 128; p++; } while (body); return p; }
static void say_connect(conn *c) {
    u8 out[128], id[48]; int n = snprintf((char *)id, sizeof id, "b%s%06d", label, c->id);
    u8 *p = head(out, 0x10, 12 + n + (version == 5));
    p = text(p, "MQTT"); *p++ = version; *p++ = 2; p16(p, 0); p += 2; if (version == 5) *p++ = 0;
    p = text(p, (char *)id); c_send(c, out, p - out);
}
static void say_subscribe(conn *c, int first, int count) {      // filters of one packet
    u8 *body = malloc(count * 64 + 8), *p = body, h[8]; char filter[60];
    p16(p, 1 + first / 50); p += 2; if (version == 5) *p++ = 0;
    for (int k = first; k < first + count; k++) {
        if (filters) snprintf(filter, sizeof filter, "bench/%s/%07d/+", label, c->id * filters + k);
        else if (pubs > 1) snprintf(filter, sizeof filter, "bench/%s/+/v", label);
        else snprintf(filter, sizeof filter, "bench/%s/%07d/v", label, 0);
        p = text(p, filter); *p++ = sub_qos;
    }
    u8 *e = head(h, 0x82, p - body); c_send(c, h, e - h); c_send(c, body, p - body); free(body); pending++;
}
static void make_source(source *s, int number) {                // its PUBLISH, with everything but what changes
    char topic[60]; snprintf(topic, sizeof topic, "bench/%s/%07d/v", label, filters ? 0 : number);
    size_t n = strlen(topic); s->frame = malloc(n + o_size + 16);
    u8 *p = head(s->frame, 0x30 | pub_qos << 1, 2 + n + 2 * (pub_qos > 0) + (version == 5) + o_size);
    s->topic = p + 2 + n - 9 - s->frame; p = text(p, topic);    // its seven digits
    s->id = p - s->frame; if (pub_qos) p += 2;
    if (version == 5) *p++ = 0;
    s->payload = p - s->frame; memset(p, 'x', o_size); p32(p + 8, number); s->size = s->payload + o_size;
    s->free = malloc(window * sizeof *s->free); s->sent = calloc(window + 1, sizeof *s->sent);
    for (int id = window; id > 0; id--) s->free[s->nfree++] = id;
}
static void publish(conn *c, source *s, i64 when) {
    u8 *p = c_put(c, s->size); memcpy(p, s->frame, s->size);
    if (filters) { u64 k = n_sent * 7919 % ((u64)subs * filters); for (int i = 6; i >= 0; i--, k /= 10) p[s->topic + i] = '0' + k % 10; }
    if (pub_qos) { u16 id = s->free[--s->nfree]; p16(p + s->id, id); s->sent[id] = when; }
    p64(p + s->payload, when); p32(p + s->payload + 12, ++s->seq); n_sent++;
}

// ---- what comes
static void on_publish(conn *c, u8 first, u8 *p, u8 *end) {
    int qos = first >> 1 & 3; p += 2 + g16(p);
    if (qos) { u8 *a = c_put(c, 4); a[0] = 0x40; a[1] = 2; a[2] = p[0]; a[3] = p[1]; p += 2; }
    if (version == 5) { u32 n = 0; int shift = 0; u8 b; do { b = *p++; n |= (b & 127) << shift; shift += 7; } while (b & 128); p += n; }
    if (end - p != o_size) die("a payload has another size");
    u32 from = g32(p + 8), seq = g32(p + 12); if (from >= (u32)pubs) die("a payload is damaged");
    u32 *last = &seen[(size_t)c->id * pubs + from]; t_last = now();
    if (seq <= *last) { n_dup++; return; }
    n_misorder += !filters && seq != *last + 1;                 // a gap: lost, or overtaken
    *last = seq; n_recv++; hist_add(t_last - (i64)g64(p));
}
static void on_puback(conn *c, u16 id) {
    source *s = &sources[c->id - subs];
    if (!id || id > window || !s->sent[id]) die("a PUBACK of what was not published");
    t_last = now(); if (!subs) hist_add(t_last - s->sent[id]);
    s->sent[id] = 0; s->free[s->nfree++] = id; n_acked++;
}
static void on_data(conn *c) {
    while (c->i1 - c->i0 >= 2) {
        u8 *b = c->in + c->i0, *e = c->in + c->i1, *p = b + 1; size_t body = 0; int shift = 0;
        for (;; shift += 7) { if (p == e) return; body |= (size_t)(*p & 127) << shift; if (*p++ < 128) break; }
        if ((size_t)(e - p) < body) return;
        c->i0 += p - b + body;
        switch (b[0] >> 4) {
        case 2: if (p[1]) die("a CONNECT was refused"); opened++; pending--;
                if (mode != FLOW) { t_last = now(); n_acked++; } if (mode == CONNECTS) c_send(c, "\xe0", 2); break;
        case 3: on_publish(c, b[0], p, p + body); break;
        case 4: on_puback(c, g16(p)); break;
        case 9: for (size_t i = 2 + (version == 5); i < body; i++) if (p[i] >= 128) die("a SUBSCRIBE was refused"); pending--; break;
        case 13: pinged++; break;
        case 14: die("the broker sent DISCONNECT");
        }
    }
}
static void on_close(conn *c) { (void)c; if (mode != CONNECTS) die("the broker closed a connection"); }

// ---- the modes
static void until_answered(void) { i64 end = now() + 60e9; while (pending > 0) { turn(10000000); if (now() > end) die("no answer within a minute"); } }
static void open_all(int count, int inflight) {
    for (int i = 0; i < count; i++) { all[i].id = i; c_open(&all[i], host, port, count > 1000); say_connect(&all[i]); pending++; while (pending >= inflight) turn(10000000); }
    until_answered();
}
static int room(void) { return !credit || !subs || n_sent * fan - n_recv - given_up < credit * fan; }
static int publish_all(void) {                                  // 1: there is more to publish at once
    i64 t = now(); int more = 0;
    if (o_rate) {                                               // a message is timed from when it was due: a late broker shows
        static u64 k; i64 due;
        while ((due = t_begin + (i64)(k * 1e9 / o_rate)) <= t) {
            source *s = &sources[k % pubs]; if (pub_qos && !s->nfree) break;
            publish(&all[subs + k++ % pubs], s, due);
        }
        return 0;
    }
    for (int i = 0; i < pubs; i++) {
        conn *c = &all[subs + i]; if (c_pending(c)) continue;   // the socket is full
        while ((!pub_qos || sources[i].nfree) && room()) { if (c_pending(c) > SHARE) { more = 1; break; } publish(c, &sources[i], t); }
    }
    return more;
}
static void flow(void) {
    all = calloc(subs + pubs, sizeof *all); sources = calloc(pubs, sizeof *sources); seen = calloc((size_t)subs * pubs + 1, sizeof *seen);
    open_all(subs + pubs, 50);
    for (int i = 0; i < subs; i++) for (int k = 0; k < (filters ? filters : 1); k += 50) { say_subscribe(&all[i], k, !filters ? 1 : filters - k < 50 ? filters - k : 50); if (pending > 100) turn(10000000); }
    for (int i = 0; i < pubs; i++) make_source(&sources[i], i);
    until_answered(); run_begin();
    while (run_more()) {
        run_warm(); i64 wait = publish_all() ? 0 : 10000000;
        if (o_rate) { i64 next = t_begin + (i64)(n_sent * 1e9 / o_rate) - now(); wait = next < 0 ? 0 : next < wait ? next : wait; }
        else if (!room() && now() - t_last > 500000000) { given_up = n_sent * fan - n_recv; n_stall++; t_last = now(); }    // what was dropped holds the credit
        turn(wait);
    }
    for (i64 quiet = now(), last = t_last; now() - quiet < 2000000000 && ((subs && n_recv < n_sent * fan) || (pub_qos && n_acked < n_sent));) { turn(10000000); if (t_last != last) { last = t_last; quiet = now(); } }
    i64 lost = subs ? (i64)(n_sent * fan - n_recv) : (i64)(n_sent - n_acked); char extra[48];
    snprintf(extra, sizeof extra, ",\"lost\":%ld", (long)lost); result(subs > 0, extra);
    for (int i = 0; i < subs + pubs; i++) c_send(&all[i], "\xe0", 2);
    flush_all();
}
static void connects(void) {                                    // the broker's close makes room for the next
    int inflight = optn("inflight", 50), open = 0; all = calloc(inflight, sizeof *all); i64 *since = calloc(inflight, sizeof *since);
    for (int i = 0; i < inflight; i++) all[i].fd = -1;
    run_begin(); i64 end = now() + (o_secs + o_warm + 10) * 1e9;
    do {
        run_warm(); open = 0;
        for (int i = 0; i < inflight; i++) {
            conn *c = &all[i];
            if (c->fd < 0 && since[i]) { hist_add(now() - since[i]); since[i] = 0; }
            if (c->fd < 0 && run_more()) { c->id = n_sent++; since[i] = now(); c->dirty = 0; c_open(c, host, port, 1); say_connect(c); }
            open += c->fd >= 0;
        }
        turn(10000000);
    } while ((open || run_more()) && now() < end);
    nclosed = 0; char extra[48]; snprintf(extra, sizeof extra, ",\"lost\":%ld", (long)(n_sent - opened)); result(0, extra);
}
static void idle(void) {
    int count = o_count; i64 hold = optn("hold", 2) * 1e9; all = calloc(count, sizeof *all); o_warm = 0; run_begin(); open_all(count, 50);
    i64 last = t_last; for (i64 end = now() + hold; now() < end;) turn(50000000);
    for (int i = 0; i < count; i++) c_send(&all[i], "\xc0", 2);
    for (i64 end = now() + 20000000000; pinged < (u64)count && now() < end;) turn(50000000);
    t_last = last; char extra[48]; snprintf(extra, sizeof extra, ",\"lost\":%ld", (long)(count - pinged)); result(0, extra);
}
int main(int argc, char **argv) {
    common_opts(argc, argv); host = opt("host", "127.0.0.1"); port = optn("port", 1883); label = opt("queue", "x"); version = optn("version", 4);
    pubs = optn("pubs", 1); subs = optn("subs", 0); pub_qos = optn("pub-qos", 0); sub_qos = optn("sub-qos", 0); window = optn("window", 100); credit = optn("credit", 0);
    filters = optn("filters", 0); fan = filters || !subs ? 1 : subs;
    if (window > 65535 || pub_qos > 1 || sub_qos > 1) die("--window is up to 65535, QoS 0 or 1");
    const char *m = opt("mode", "flow"); mode = !strcmp(m, "connects") ? CONNECTS : !strcmp(m, "idle") ? IDLE : FLOW;
    if (mode == CONNECTS) connects(); else if (mode == IDLE) idle(); else flow();
}
