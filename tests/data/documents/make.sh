#!/usr/bin/env bash
# Makes the documents and videos of this folder with other programs. They are kept; run it only to change them.
# Made with LibreOffice 7.4.7, qpdf 11.3.0 and ffmpeg 5.1.9 of Debian 12.
set -euo pipefail
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Three pages of A4: a red, a green and a blue box.
{
  echo '<html><body>'
  for colour in ff0000 00a000 0000ff; do
    echo "<table width=100% style='page-break-after: always'><tr><td height=800 bgcolor=#$colour>Invoice</td></tr></table>"
  done
  echo '<p>The last page: total 42.00</p></body></html>'
} > "$work/letter.html"
soffice --headless "-env:UserInstallation=file://$work/profile" --convert-to pdf:writer_web_pdf_Export --outdir "$work" "$work/letter.html" > /dev/null
qpdf --linearize "$work/letter.pdf" letter.pdf
qpdf --encrypt secret owner 256 -- letter.pdf encrypted.pdf
qpdf --encrypt "" owner 256 -- letter.pdf protected.pdf  # opens without a password
qpdf letter.pdf --pages . 1 -- --rotate=+90 rotated.pdf

# Three seconds: red, green, blue, with a white corner at the upper left.
film() { ffmpeg -v error -y -f lavfi -i color=red:size=64x48:rate=10:duration=1 -f lavfi -i color=0x00a000:size=64x48:rate=10:duration=1 \
  -f lavfi -i color=blue:size=64x48:rate=10:duration=1 -filter_complex "[0][1][2]concat=n=3,drawbox=w=16:h=12:color=white:t=fill$1" -bitexact "${@:2}"; }
film "" -c:v libx264 -pix_fmt yuv420p clip.mp4
film "" -c:v libvpx-vp9 clip.webm
film "" -c:v mpeg4 clip.avi
film "" -c:v mjpeg -pix_fmt yuvj420p clip.mov
film "" -c:v flv clip.flv
film "" -c:v wmv2 clip.wmv
film "" -c:v mpeg1video -r 25 clip.mpg
film "" -c:v libtheora clip.ogv
film "" -loop 0 clip.gif
film ",setsar=2" -c:v libx264 -pix_fmt yuv420p wide.mp4  # pixels twice as wide as high
film ",select='not(between(n,10,18))'" -vsync vfr -c:v libx264 -pix_fmt yuv420p variable.mkv  # one red frame lasts a second
film "" -c:v libx264 -pix_fmt yuv420p -f matroska - > live.mkv  # to a pipe: no duration and no index
ffmpeg -v error -y -i clip.mp4 -c copy -metadata:s:v rotate=90 -bitexact turned.mp4
ffmpeg -v error -y -f lavfi -i sine=duration=1 -c:a aac -b:a 16k -bitexact sound.mp4
ffmpeg -v error -y -f lavfi -i color=black:size=8192x8192:rate=1 -frames:v 1 -c:v libvpx-vp9 -pix_fmt yuv420p -bitexact huge.webm
ffmpeg -v error -y -f lavfi -i testsrc=size=64x48:rate=1:duration=30 -c:v libx264 -pix_fmt yuv420p -bitexact long.mp4
